import json
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.config import CARConfig
from g3pt.models.car import G3PT
from g3pt.models.encoders import BEGIN, END, PAD, ImageEncoder, TextEncoder, WordTokenizer, common_words
from g3pt.models.sampling import SampleConfig
from tests.g3pt.tiny import random_batch, tiny_tokenizer

Image = pytest.importorskip("PIL.Image")


def test_a_word_has_an_id_and_other_words_are_spelled() -> None:
    tokenizer = WordTokenizer(["chair", ","])
    ids, mask = tokenizer(["Chair, chair", "a Stuhl", "椅子", ""])
    assert ids[0, :5].tolist() == [BEGIN, END + 1, END + 2, END + 1, END]
    assert ids[1].tolist() == [BEGIN, *b" a stuhl", END]
    assert ids[2, :9].tolist() == [BEGIN, *" 椅子".encode(), END]
    assert mask.sum(1).tolist() == [5, 10, 9, 2] and (ids[3, 2:] == PAD).all()
    assert [tokenizer.decode(row) for row in ids] == ["chair , chair", "a stuhl", "椅子", ""]
    assert WordTokenizer().encode("ab c") != WordTokenizer().encode("a bc")


def test_words_are_the_frequent_ones_in_one_order() -> None:
    texts = ["a chair with four legs", "A table with four legs", "a chair", "four chairs, a lamp"]
    assert common_words(texts) == ["a", "four"]
    assert common_words(reversed(texts * 3)) == ["a", "four", "chair", "legs", "with", ",", "chairs", "lamp", "table"]


def test_at_least_256_positions_and_longer_texts_are_refused_or_cut() -> None:
    tokenizer = WordTokenizer()
    assert tokenizer(["x" * 253])[0].shape == (1, 256)
    with pytest.raises(ValueError, match="text of 255 tokens does not fit"):
        tokenizer(["x" * 254])
    assert tokenizer(["x" * 300], cut=True)[0].shape == (1, 256)


def test_padding_does_not_change_a_text() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder().eval()
    alone = encoder(*encoder.tokenizer(["a chair"]))
    padded = encoder(*encoder.tokenizer(["a chair", "a chair with four long legs"]))
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)
    assert (padded[0] - padded[1]).abs().max() > 1e-2


@pytest.mark.parametrize("texts", [["a chair", "a chair with four long legs"], ["a chair", "a table"]])
def test_the_mask_of_words_is_the_one_that_transformers_makes(texts: list[str]) -> None:
    """To the bit, with padding and without, where it makes none."""
    encoder = TextEncoder()
    ids_BM, mask_BM = encoder.tokenizer(texts)
    encoder(ids_BM, mask_BM).square().sum().backward()
    ours = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    encoder.model(input_ids=ids_BM, attention_mask=mask_BM).pooler_output.square().sum().backward()
    theirs = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small CLIP text and DINOv2 models with their tokenizer, saved as the hub stores them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub")
    words = {w: i for i, w in enumerate(["<pad>", "<start>", "<end>", "<unk>", "a", "chair", "table", "red"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    names = dict(pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names).save_pretrained(folder / "clip")
    torch.manual_seed(0)
    CLIPTextModel(
        CLIPTextConfig(vocab_size=8, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(folder / "clip")  # fmt: skip
    Dinov2Model(
        Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(folder / "dino")
    return folder


def test_pretrained_encoders_are_loaded_frozen_and_only_named_in_the_export(pretrained: Path, tmp_path: Path) -> None:
    config = CARConfig(depth=1, width=16, num_heads=2, image_size=28,
                       text_encoder=str(pretrained / "clip"), image_encoder=str(pretrained / "dino"))  # fmt: skip
    model = G3PT(config, tiny_tokenizer())
    batch = random_batch(model) | dict(
        zip(("text_BM", "text_mask_BM"), model.text.tokenizer(["a chair"] * 4), strict=True)
    )
    loss, _ = model.train()(batch)
    loss.backward()
    assert all(p.grad is None for encoder in model.frozen.values() for p in encoder.parameters())
    assert not model.text.model.training
    model.eval().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model"]["text_encoder"] == str(pretrained / "clip")
    assert not [name for name in model.state_dict() if "encoder.model" in name]
    again, settings = G3PT.from_pretrained(tmp_path), SampleConfig()
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    codes = model.sample_codes(["a red table"], [image], [0], settings, batch=1)
    assert torch.equal(again.sample_codes(["a red table"], [image], [0], settings, batch=1), codes)


def test_pickled_weights_are_never_loaded(pretrained: Path, tmp_path: Path) -> None:
    import shutil

    for name, encoder in (("clip", TextEncoder), ("dino", lambda folder: ImageEncoder(folder, size=28))):
        folder = tmp_path / name
        shutil.copytree(pretrained / name, folder)
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            encoder(str(folder))


def test_a_text_too_long_for_a_pretrained_encoder_is_refused(pretrained: Path) -> None:
    encoder = TextEncoder(str(pretrained / "clip"))
    with pytest.raises(ValueError, match="does not fit"):
        encoder.tokenizer(["a chair " * 20])


def test_an_image_encoder_of_another_kind_is_refused(pretrained: Path) -> None:
    with pytest.raises(ValueError, match="not a Dinov2Model"):
        ImageEncoder(str(pretrained / "clip"), size=28)


def test_image_size_must_fit_the_patches_of_a_pretrained_encoder(pretrained: Path) -> None:
    with pytest.raises(ValueError, match="image_size 50 is not a multiple"):
        ImageEncoder(str(pretrained / "dino"), size=50)


@pytest.mark.parametrize("size", [20, 56])
def test_the_small_image_encoder_reads_any_size_and_tells_pictures_apart(size: Any) -> None:
    torch.manual_seed(0)
    encoder, images_B3HW = ImageEncoder(size=size), torch.randn(2, 3, size, size)
    tokens_BMC = encoder(images_B3HW)
    assert tokens_BMC.shape == (2, encoder.num_tokens, encoder.width) == (2, (-(-size // 16)) ** 2, 64)
    torch.testing.assert_close(encoder(images_B3HW[1:]), tokens_BMC[1:], rtol=1e-4, atol=1e-5)
    assert (tokens_BMC[0] - tokens_BMC[1]).abs().max() > 0.1
    tokens_BMC.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
