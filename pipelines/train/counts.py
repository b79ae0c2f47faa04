"""Numbers of parameters of a model, from its configuration alone."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec


CLIP_WIDTH, DINO_WIDTH, DINO_PATCH = 768, 1024, 14  # of the encoders named by the large presets, both ViT-L/14


def count_cvq(model: Any) -> dict[str, int]:
    """Parameters, tokens and codes of a tokenizer."""
    from g3pt.models.tokenizer import CVQ

    return {
        "parameters": sum(p.numel() for p in CVQ(model).parameters()),
        "tokens": model.num_tokens,
        "codes": model.num_codes,
    }


def count_car(model: Any, codec: Any = None) -> dict[str, int]:
    """Parameters of a generator's transformer, counted three ways. Allocates no memory for them.

    `parameters_no_embed`: without embeddings, projections of inputs and conditions, and head; `parameters_no_adaln`:
    also without the modulation of norms; `parameters_total`: all of the transformer, for the codes of the tokenizer
    `codec` (default: of `nano`). Encoders and tokenizer are in none of them.
    """
    from g3pt.config import cvq_preset

    names = ("parameters_no_embed", "parameters_no_adaln", "parameters_total")
    return dict(zip(names, _car_counts(model, codec or cvq_preset("nano")[0]), strict=True))


@functools.lru_cache(maxsize=64)  # a study counts each size many times, and building one takes .2 s
def _car_counts(model: Any, codec: Any) -> tuple[int, int, int]:
    car = meta_car(model, codec)
    return car.num_params_no_embed, car.num_params_no_adaln, sum(p.numel() for p in car.parameters())


@functools.lru_cache(maxsize=64)
def car_operations(model: Any, codec: Any) -> int:
    """Operations of a generator's transformer in the forward pass over one object."""
    return int(meta_car(model, codec).flops_per_object)


def count_parameters(spec: RunSpec) -> int:
    """The size of a run's model: all parameters of a tokenizer, those of a generator without embeddings and heads."""
    from g3pt.config import CARConfig, CVQConfig, from_dict

    if spec.stage == "cvq":
        return count_cvq(from_dict(CVQConfig, spec.config["model"]))["parameters"]
    return count_car(from_dict(CARConfig, spec.config["model"]))["parameters_no_embed"]


def meta_car(model: Any, codec: Any) -> Any:
    """The transformer of a configuration for a tokenizer's codes, without memory for its weights."""
    import torch

    from g3pt.models.transformer import CAR

    text, image, image_tokens = condition_widths(model)
    with torch.device("meta"):
        return CAR(model, codec, text_width=text, image_width=image, image_tokens=image_tokens)


def condition_widths(model: Any) -> tuple[int, int | None, int]:
    """(width of the text's vector, width of an image token, number of image tokens)."""
    from g3pt.models.encoders import NONE, SMALL, SMALL_IMAGE, SMALL_TEXT, text_is_small
    from g3pt.models.image_encoder import grid_tokens

    text = SMALL_TEXT["hidden_size"] if text_is_small(model.text_encoder) else CLIP_WIDTH
    if model.image_encoder == NONE:
        return text, None, 0
    if model.image_encoder == SMALL:
        return text, SMALL_IMAGE["widths"][-1], grid_tokens(model.image_size, len(SMALL_IMAGE["widths"]))
    return text, DINO_WIDTH, (model.image_size // DINO_PATCH) ** 2 + 1
