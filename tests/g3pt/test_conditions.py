import io
import json
import zlib

import pytest
import torch

from g3pt.car import G3PT
from g3pt.conditions import ByteTokenizer, ImageEncoder, TextEncoder, prepare_image
from g3pt.config import CARConfig
from g3pt.sampling import SampleConfig
from tests.g3pt.tiny import random_batch, tiny_tokenizer

Image = pytest.importorskip("PIL.Image")


def square(mode="RGBA", size=(80, 60), box=(10, 20, 40, 40), background=(0, 0, 0, 0), colour=(255, 0, 0, 255)):
    """A coloured rectangle on a background."""
    image = Image.new("RGBA", size, background)
    image.paste(colour, box)
    return image.convert(mode)


def test_bytes_round_trip_and_pad_to_the_longest():
    tokenizer = ByteTokenizer()
    texts = ["a chair", "ein großer Tisch", "椅子", ""]
    ids, mask = tokenizer(texts)
    assert [tokenizer.decode(row) for row in ids] == texts
    assert ids.shape[1] == len("ein großer Tisch".encode()) + 2 and mask.sum(1).tolist() == [9, 19, 8, 2]


def test_at_least_256_positions_and_longer_texts_are_refused_or_cut():
    tokenizer = ByteTokenizer()
    assert tokenizer(["x" * 254])[0].shape == (1, 256)
    with pytest.raises(ValueError, match="text of 255 bytes does not fit"):
        tokenizer(["x" * 255])
    assert tokenizer(["x" * 300], cut=True)[0].shape == (1, 256)


def test_padding_does_not_change_a_text():
    torch.manual_seed(0)
    encoder = TextEncoder().eval()
    alone = encoder(*encoder.tokenizer(["a chair"]))
    padded = encoder(*encoder.tokenizer(["a chair", "a chair with four long legs"]))
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)
    assert (padded[0] - padded[1]).abs().max() > 1e-2


def test_transparency_is_background_and_the_object_is_centred_with_a_margin():
    pixels = prepare_image(square(), 40, margin=0.1)
    red = pixels[1] < -0.5  # green is absent only where the object is
    rows, columns = torch.where(red.any(1))[0], torch.where(red.any(0))[0]
    assert pixels[:, 0, 0].abs().max() < 0.02  # the mean colour, to the nearest of 256 values
    assert abs(rows.float().mean() - 19.5) < 1 and abs(columns.float().mean() - 19.5) < 1
    assert 31 <= len(columns) <= 35 and 20 <= len(rows) <= 24  # 30 x 20 pixels in a square of 36


def test_hidden_colour_behind_full_transparency_does_not_leak():
    loud, quiet = square(background=(0, 255, 0, 0)), square(background=(0, 0, 0, 0))
    assert torch.equal(prepare_image(loud, 28), prepare_image(quiet, 28))


def test_an_even_border_counts_as_background():
    on_grey = square("RGB", background=(90, 90, 90, 255))
    cut = prepare_image(on_grey, 40, margin=0.0)
    assert torch.allclose(cut[:, 20, 0], cut[:, 20, 39], atol=1e-3) and cut[1, 20, 20] < 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_gives_finite_pixels(mode):
    source = square("RGB", background=(255, 255, 255, 255))
    image = source.convert("I").convert(mode) if mode == "I;16" else source.convert("RGB").convert(mode)
    pixels = prepare_image(image, 28)
    assert pixels.shape == (3, 28, 28) and torch.isfinite(pixels).all() and pixels.std() > 0.01


def test_sixteen_bit_grey_keeps_its_range():
    import numpy as np

    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = prepare_image(Image.fromarray(ramp), 28)
    assert pixels[0, -3, 14] - pixels[0, 3, 14] > 2


def test_bytes_and_paths_equal_the_image(tmp_path):
    image, buffer = square(), io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    want = prepare_image(image, 28)
    assert torch.equal(prepare_image(buffer.getvalue(), 28), want)
    assert torch.equal(prepare_image(tmp_path / "a.png", 28), want)


def test_an_invisible_image_is_refused():
    with pytest.raises(ValueError, match="fully transparent"):
        prepare_image(Image.new("RGBA", (8, 8), (1, 2, 3, 0)), 28)


def test_formats_that_start_programs_are_not_opened(tmp_path):
    square("RGB").save(tmp_path / "a.eps")
    with pytest.raises(OSError, match="cannot identify"):
        prepare_image(tmp_path / "a.eps", 28)


def test_a_huge_or_broken_picture_is_a_value_error(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    square().save(buffer, "PNG")
    header = bytearray(buffer.getvalue())
    header[16:24] = (20_000).to_bytes(4, "big") * 2  # 400 million pixels, as the header says
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="exceeds limit|decompression bomb"):
        prepare_image(bytes(header), 28)
    monkeypatch.setattr("g3pt.conditions.MAX_PIXELS", 80 * 60 - 1)
    with pytest.raises(ValueError, match="80 x 60 pixels"):
        prepare_image(buffer.getvalue(), 28)
    monkeypatch.undo()
    broken = bytearray(buffer.getvalue())
    broken[broken.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises((ValueError, OSError)):
        prepare_image(bytes(broken), 28)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
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


def test_pretrained_encoders_are_loaded_frozen_and_only_named_in_the_export(pretrained, tmp_path):
    config = CARConfig(depth=1, width=16, num_heads=2, image_size=28,
                       text_encoder=str(pretrained / "clip"), image_encoder=str(pretrained / "dino"))  # fmt: skip
    model = G3PT(config, tiny_tokenizer())
    batch = random_batch(model) | dict(zip(("text_BM", "text_mask_BM"), model.text.tokenizer(["a chair"] * 4), strict=True))
    loss, _ = model.train()(batch)
    loss.backward()
    assert all(p.grad is None for encoder in model.frozen.values() for p in encoder.parameters())
    assert not model.text.model.training
    model.eval().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model"]["text_encoder"] == str(pretrained / "clip")
    assert not [name for name in model.state_dict() if "encoder.model" in name]
    again, settings = G3PT.from_pretrained(tmp_path), SampleConfig()
    image = square()
    codes = model.sample_codes(["a red table"], [image], [0], settings, batch=1)
    assert torch.equal(again.sample_codes(["a red table"], [image], [0], settings, batch=1), codes)


def test_pickled_weights_are_never_loaded(pretrained, tmp_path):
    import shutil

    for name, encoder in (("clip", TextEncoder), ("dino", lambda folder: ImageEncoder(folder, size=28))):
        folder = tmp_path / name
        shutil.copytree(pretrained / name, folder)
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            encoder(str(folder))


def test_a_text_too_long_for_a_pretrained_encoder_is_refused(pretrained):
    encoder = TextEncoder(str(pretrained / "clip"))
    with pytest.raises(ValueError, match="does not fit"):
        encoder.tokenizer(["a chair " * 20])


def test_an_image_encoder_of_another_kind_is_refused(pretrained):
    with pytest.raises(ValueError, match="not a Dinov2Model"):
        ImageEncoder(str(pretrained / "clip"), size=28)


def test_image_size_must_fit_the_patches():
    with pytest.raises(ValueError, match="image_size 50 is not a multiple"):
        ImageEncoder(size=50)
