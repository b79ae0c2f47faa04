"""The two condition encoders: a text becomes one vector, an image a row of tokens.

Where they enter the generator: transformer.py.

A hub id (or a folder) names a CLIPTextModel or a Dinov2Model. It is loaded with `from_pretrained`, frozen, and only
named in the export, with its revision. `small` builds a small encoder with fresh weights, which is trained jointly with
the generator and is part of its export: a CLIPTextModel, and convolutions (`g3pt.models.image_encoder`). `exported` is
the small text encoder of another generator's export, frozen, which becomes part of the new export too.

Source: G3PT (arXiv 2409.06322): CLIP text embedding, DINOv2 patch tokens (ViT-L/14).
Ours: the small encoders, the small text encoder's tokenizer of words and bytes, and DINOv2's class token, which is kept
as one more image token.
Shapes: B batch, M condition tokens (words of a text, patches of an image), C width of an encoder, H W pixels.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from g3pt.models.image_encoder import ConvEncoder
from g3pt.training.exports import CONFIG_NAME, export_hash, find_export, finite_tensors, read_export_config

SMALL = "small"
NONE = "none"
EXPORTED = "exported"
PAD, BEGIN, END = 256, 257, 258  # ids after those of the 256 bytes; words follow
MAX_WORDS, MIN_COUNT = 4096, 3  # of the training captions
SMALL_TEXT: dict[str, Any] = {
    "words": [],  # with an id of their own, most frequent first
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "projection_dim": 96,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}
SMALL_IMAGE: dict[str, Any] = {"widths": [16, 32, 64, 64], "blocks": [0, 1, 1, 1], "num_layers": 1, "num_heads": 4}


class WordTokenizer:
    """Lower-case words and punctuation marks between BEGIN and END, padded to the longest text of the batch.

    A word that is not in `words` is spelled in UTF-8 bytes after a space. From bytes alone the small encoder learnt the
    first words of a caption but not its end, whose position varies (LOG.md, 2026-11-28).
    """

    def __init__(self, words: Sequence[str] = (), max_length: int = SMALL_TEXT["max_position_embeddings"]) -> None:
        self.max_length = max_length
        self.words = list(words)
        self.ids = {word: END + k for k, word in enumerate(words, start=1)}

    def __call__(self, texts: Sequence[str], cut: bool = False) -> tuple[Tensor, Tensor]:
        """(ids int64 (B, M), mask int64 (B, M)) of texts.

        ValueError for a text that does not fit, unless it is to be `cut`.
        """
        room = self.max_length - 2
        encoded = [self.encode(text) for text in texts]
        longest = max(len(e) for e in encoded)
        if longest > room and not cut:
            raise ValueError(f"text of {longest} tokens does not fit the text encoder's {room}")
        rows = [[BEGIN, *e[:room], END] for e in encoded]
        width = max(len(r) for r in rows)
        ids_BM = torch.tensor([r + [PAD] * (width - len(r)) for r in rows], dtype=torch.int64)
        return ids_BM, (ids_BM != PAD).long()

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without BEGIN and END."""
        found: list[int] = []
        for word in split_words(text):
            found += [self.ids[word]] if word in self.ids else f" {word}".encode()
        return found

    def decode(self, ids_M: Tensor) -> str:
        """The text of one row of ids, in lower case, with one space between words and marks."""
        parts = (
            bytes([i]) if i < PAD else f" {self.words[i - END - 1]}".encode()
            for i in ids_M.tolist()
            if i < PAD or i > END
        )
        return b"".join(parts).decode("utf-8", errors="replace").strip()


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def common_words(texts: Iterable[str]) -> list[str]:
    """The MAX_WORDS most frequent words that occur at least MIN_COUNT times, most frequent first.

    Rarer ones are spelled.
    """
    counts = Counter(word for text in texts for word in split_words(text))
    return sorted(
        (word for word, count in counts.items() if count >= MIN_COUNT), key=lambda word: (-counts[word], word)
    )[:MAX_WORDS]


class HubTokenizer:
    """The tokenizer of a pretrained text encoder, with WordTokenizer's interface."""

    def __init__(self, name: str, revision: str | None) -> None:
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(name, revision=revision)

    def __call__(self, texts: Sequence[str], cut: bool = False) -> tuple[Tensor, Tensor]:
        out = self.inner(list(texts), padding=True, truncation=cut, return_tensors="pt")
        room = self.inner.model_max_length
        if out["input_ids"].shape[1] > room:
            raise ValueError(f"text of {out['input_ids'].shape[1]} tokens does not fit the text encoder's {room}")
        return out["input_ids"], out["attention_mask"]


class TextEncoder(nn.Module):
    """CLIP's text tower, whose output at the end token is the condition."""

    def __init__(self, name: str = SMALL, revision: str | None = None, small: dict[str, Any] | None = None) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.trained_here, self.in_export = name == SMALL, name in (SMALL, EXPORTED)
        if self.in_export:
            values = dict(small or SMALL_TEXT)
            words = values.pop("words")
            self.tokenizer: WordTokenizer | HubTokenizer = WordTokenizer(words, values["max_position_embeddings"])
            self.model = CLIPTextModel(CLIPTextConfig(**values | {"vocab_size": END + 1 + len(words)}))
            _freeze_key_biases(self.model)
            if name == EXPORTED:
                self.requires_grad_(False)
        else:
            revision = commit_of(name, revision)
            with from_hub(name):
                self.tokenizer = HubTokenizer(name, revision)
                self.model = (
                    CLIPTextModel.from_pretrained(name, revision=revision, use_safetensors=True)
                    .requires_grad_(False)
                    .eval()
                )
        self.revision = revision

    @classmethod
    def of_export(cls, path: str | Path) -> TextEncoder:
        """The frozen text encoder that a generator's export (or finished run) contains.

        ValueError if it contains none.
        """
        small, state = exported_text(path)
        encoder = cls(EXPORTED, export_hash(path), small)
        encoder.load_state_dict(state)
        return encoder.eval()

    @property
    def width(self) -> int:
        """C."""
        return self.model.config.hidden_size

    def forward(self, ids_BM: Tensor, mask_BM: Tensor) -> Tensor:
        """Token ids and mask to one vector (B, C)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained_here):
            return self.model(input_ids=ids_BM, attention_mask=causal_mask(mask_BM)).pooler_output


def causal_mask(mask_BM: Tensor) -> Tensor:
    """Which words each word of a text may read, bool (B, 1, M, M): itself and those before it, without padding.

    transformers would make the same from `mask_BM`, but asks first whether any word is padding, which waits for a GPU.
    """
    before_MM = torch.ones(mask_BM.shape[1], mask_BM.shape[1], dtype=torch.bool, device=mask_BM.device).tril()
    return before_MM & mask_BM.bool()[:, None, None]


def export_of(name: str) -> Path | None:
    """The export folder at `name`; None for a hub id and for a folder of another library.

    ValueError for an unfinished run.
    """
    folder = Path(name)
    config = folder / CONFIG_NAME
    try:
        ours = config.exists() and "kind" in json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config}: not JSON ({error}); fetch the encoder anew") from None
    if ours or (folder / "metrics.jsonl").exists() or (folder / "export").is_dir():
        return find_export(folder)
    return None


def text_is_small(name: str) -> bool:
    """Whether a configuration's text encoder has the sizes of SMALL_TEXT: it is trained here, or taken
    from an export.
    """
    return name in (SMALL, EXPORTED) or export_of(name) is not None


def exported_text(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of the text encoder in a generator's export. ValueError if it contains none."""
    values = read_export_config(path)
    if values["kind"] != "car" or values["model"].get("text_encoder", SMALL) not in (SMALL, EXPORTED):
        raise ValueError(f"{path}: contains no text encoder; name a generator that was trained with text_encoder=small")
    prefix = "text_encoder."
    state = {name.removeprefix(prefix): t for name, t in finite_tensors(path) if name.startswith(prefix)}
    return values["small_encoders"]["text"], state


class ImageEncoder(nn.Module):
    """DINOv2 with its class token and patch tokens, or the small encoder with its tokens."""

    def __init__(
        self, name: str = SMALL, revision: str | None = None, size: int = 56, small: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.trained_here = self.in_export = name == SMALL
        self.size = size
        self.revision = revision if self.trained_here else commit_of(name, revision)
        if self.trained_here:
            self.model = ConvEncoder(size, **(small or SMALL_IMAGE))
            self.num_tokens, self.width = self.model.positions.shape
            return
        self.model = _pretrained_dino(name, self.revision)
        patch = self.model.config.patch_size
        if size % patch:
            raise ValueError(f"image_size {size} is not a multiple of the encoder's patch, {patch}")
        self.width, self.num_tokens = self.model.config.hidden_size, (size // patch) ** 2 + 1  # patches, class token

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pixels to tokens (B, M, C)."""
        if self.trained_here:
            return self.model(images_B3HW)
        with torch.no_grad():
            return self.model(pixel_values=images_B3HW).last_hidden_state


def _pretrained_dino(name: str, revision: str | None) -> nn.Module:
    from transformers import AutoModel, Dinov2Model

    with from_hub(name):
        model = AutoModel.from_pretrained(name, revision=revision, use_safetensors=True).requires_grad_(False).eval()
    if not isinstance(model, Dinov2Model):
        raise ValueError(f"image encoder {name!r} is a {type(model).__name__}, not a Dinov2Model")
    return model


class StoredEncoder(nn.Module):
    """The shape of a pretrained encoder, without weights, for a model whose features are stored
    (`g3pt.models.features`).
    """

    trained_here = in_export = False

    def __init__(self, name: str, revision: str | None, width: int, num_tokens: int = 1) -> None:
        super().__init__()
        self.name, self.revision, self.width, self.num_tokens = name, revision, width, num_tokens

    def forward(self, *_: Tensor) -> Tensor:
        """Always an error: there are no weights."""
        raise RuntimeError(f"{self.name}: only its stored features are available; load the export to give prompts")


class MissingEncoder(ValueError):
    """A pretrained encoder is neither in the cache nor available from the hub; the message has the remedy."""


@contextlib.contextmanager
def from_hub(name: str) -> Iterator[None]:
    """A context to load an encoder in: it keeps the random state, and turns the errors
    of an unreachable hub into MissingEncoder.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except OSError as error:
        if Path(name).is_dir():
            raise
        from huggingface_hub import constants

        said = " ".join(str(error).split("\n")[0].split()).rstrip(" .")
        raise MissingEncoder(
            f"encoder {name} is neither in the Hugging Face cache {constants.HF_HUB_CACHE} nor available from the hub "
            f"({said}); remedy: `hf download {name}` where there is a network, and HF_HOME set to a cache that every "
            f"node reads"
        ) from error


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a hub id's revision (None: main), from the hub or its cache; None for a folder."""
    if Path(name).is_dir():
        return None
    from transformers.utils import cached_file

    with from_hub(name):
        return Path(
            cached_file(name, "config.json", revision=revision)
        ).parent.name  # CACHE/models--OWNER--NAME/snapshots/COMMIT


def _freeze_key_biases(model: nn.Module) -> None:
    """Keep the bias of the keys at zero: softmax does not depend on it, and its gradient would be rounding noise."""
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):
            parameter.requires_grad_(False)
