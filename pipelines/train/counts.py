"""Numbers of parameters of a model, from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec


def count_cvq(model: Any) -> dict[str, int]:
    """Parameters, tokens and codes of a tokenizer."""
    from g3pt.models.tokenizer import CVQ

    return {
        "parameters": sum(p.numel() for p in CVQ(model).parameters()),
        "tokens": model.num_tokens,
        "codes": model.num_codes,
    }


def count_car(model: Any) -> dict[str, int]:
    """Parameters of a generator's transformer without embeddings and heads. Allocates no memory for them."""
    import torch

    from g3pt.config import cvq_preset
    from g3pt.models.transformer import CAR

    with torch.device("meta"):
        car = CAR(model, cvq_preset("nano")[0], text_width=model.width, image_width=None)
    return {"parameters_no_embed": car.num_params_no_embed}


def count_parameters(spec: RunSpec) -> int:
    """The size of a run's model: all parameters of a tokenizer, those of a generator without embeddings and heads."""
    from g3pt.config import CARConfig, CVQConfig, from_dict

    if spec.stage == "cvq":
        return count_cvq(from_dict(CVQConfig, spec.config["model"]))["parameters"]
    return count_car(from_dict(CARConfig, spec.config["model"]))["parameters_no_embed"]
