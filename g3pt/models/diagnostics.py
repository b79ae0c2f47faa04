"""What a tokenizer's codes are worth, per scale: collapse, information, stability and quality,
on objects not trained on.

Two entropies are distinguished. The pooled one counts a scale's codes over all positions and objects; it looks healthy
even when each position has one constant code. The one at a fixed position, averaged over positions, is zero then: only
it measures information about the object. Agreement is the share of codes that two independent samplings of a surface
have in common: the rest is noise that no generator can predict.

Workers of a group share the objects, in turn; each returns all figures.

Ours: all of it (the paper reports a utilisation without its definition; ours is distinct codes divided by the number
that uniform draws would show); reasons in LOG.md.

Shapes: N objects, P surface points, Q query points, T tokens of a scale, S tokens of all scales, V codes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from g3pt.data.batches import unpack_rows
from g3pt.metrics.entropy import expected_distinct, sample_entropy
from g3pt.metrics.thickness import band_means
from g3pt.models.tokenizer import CVQ
from g3pt.training.parallel import sum_over_workers
from g3pt.training.sharing import Shared, joined

EVAL_QUERIES = 2048  # volume points per object that the running validation reads
EVAL_BATCH = 32


@torch.no_grad()
def diagnose(
    model: CVQ, arrays: dict[str, Any], device: str | torch.device = "cpu", shared: Shared | None = None
) -> dict[str, float]:
    """All figures over `arrays` (surface, eval_surface, sharp, volume_points, volume_occupancy) of one split,
    as a flat record. With `shared` the arrays are of this worker's objects.

    In the continuous phase only the autoencoder's IoU and loss are known. Keys end in `_scale_1` (the coarsest) and so
    on. If `arrays` has thickness, IoUs of the bands of `g3pt.metrics.thickness` that have objects follow, as in
    `iou_thin`. `loss_volume` is the term of that name in the training loss: binary cross-entropy of occupancy at volume
    points.
    """
    model.eval()
    shared = shared or Shared.everywhere(len(arrays["surface"]), EVAL_BATCH)

    def figures(part: int) -> dict[str, Any]:
        rows = shared.rows(part)
        thickness = {"thickness": arrays["thickness"][rows.start : rows.stop]} if "thickness" in arrays else {}
        return _diagnose_batch(model, eval_batch(arrays, model, device, rows.start, len(rows))) | thickness

    mine = shared.in_turn(figures)
    moments = [part.pop("moments") for part in mine.values() if "moments" in part]
    parts = joined(mine)
    by_object = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name.startswith(("iou", "loss"))
    }
    record = {name: float(values_N.mean()) for name, values_N in by_object.items()}
    if "thickness" in parts[0]:
        thickness_N = np.concatenate([part["thickness"] for part in parts])
        for name in ("iou_continuous", "iou"):
            means = band_means(by_object[name], thickness_N) if name in by_object else {}
            record |= {f"{name}_{band}": mean for band, mean in means.items()}
    if model.phase == "continuous":
        return record
    codes_NS, again_NS = (torch.cat([part[name] for part in parts]) for name in ("codes", "codes_again"))
    residual_NS = torch.cat([part["residual"] for part in parts])
    variance = latent_variance(moments, len(codes_NS), model.latent_mean_LD)
    start = 0
    for scale, num_tokens in enumerate(model.config.scales):
        rows = slice(start, start + num_tokens)
        values = code_statistics(codes_NS[:, rows], again_NS[:, rows], model) | {
            "residual_ratio": float(residual_NS[:, scale].mean() / variance)
        }
        record |= {f"{name}_scale_{scale + 1}": value for name, value in values.items()}
        start += num_tokens
    return record


@torch.no_grad()
def validation_loss(
    model: CVQ, arrays: dict[str, Any], device: str | torch.device = "cpu", shared: Shared | None = None
) -> float:
    """`loss_volume` of `diagnose` alone, for a fraction of its time: one decoding per object."""
    model.eval()
    shared = shared or Shared.everywhere(len(arrays["surface"]), EVAL_BATCH)

    def losses(part: int) -> np.ndarray:
        rows = shared.rows(part)
        batch = eval_batch(arrays, model, device, rows.start, len(rows))
        latents_BLD = model.encoder(batch["surface"], batch.get("sharp"))
        if model.phase != "continuous":
            latents_BLD = model.cqt(latents_BLD, frozen=True).canvases_BLD[-1]
        return _decoded(model, latents_BLD, batch)[1]

    return float(np.mean(np.concatenate(joined(shared.in_turn(losses)))))


def eval_batch(
    arrays: dict[str, Any], model: CVQ, device: str | torch.device, start: int = 0, size: int = EVAL_BATCH
) -> dict[str, Tensor]:
    """Up to `size` objects from `start` on: the first points of each stored sample, the same at every call."""
    config, rows = model.config, slice(start, start + size)
    batch = {name: arrays[name][rows, : config.num_encode_points] for name in ("surface", "eval_surface")}
    if config.num_sharp_points:
        batch["sharp"] = arrays["sharp"][rows, : config.num_sharp_points]
        # another sample if enough are stored, else the same: then agreement says nothing about sharp points
        batch["sharp_again"] = arrays["sharp"][rows, -config.num_sharp_points :]
    batch["points"] = arrays["volume_points"][rows, :EVAL_QUERIES]
    index = np.arange(batch["points"].shape[1])
    tensors = {name: torch.from_numpy(value.astype(np.float32)).to(device) for name, value in batch.items()}
    inside = np.stack([unpack_rows(packed, index) for packed in arrays["volume_occupancy"][rows]])
    return tensors | {"inside": torch.from_numpy(inside).to(device)}


def _diagnose_batch(model: CVQ, batch: dict[str, Tensor]) -> dict[str, Any]:
    latents_BLD = model.encoder(batch["surface"], batch.get("sharp"))
    iou_B, loss_B = _decoded(model, latents_BLD, batch)
    result: dict[str, Any] = {"iou_continuous": iou_B, "loss_volume": loss_B}
    if model.phase == "continuous":
        return result
    output = model.cqt(latents_BLD, frozen=True)
    for scale, canvas_BLD in enumerate(output.canvases_BLD):
        result[f"iou_scale_{scale + 1}"], loss_B = _decoded(model, canvas_BLD, batch)
        result["loss_volume"] = loss_B  # of the last scale in the end
    result["iou"] = result[f"iou_scale_{model.config.num_scales}"]
    errors = [(canvas_BLD - latents_BLD).square().mean((1, 2)) for canvas_BLD in output.canvases_BLD]
    moments = torch.stack([latents_BLD.double().sum(0), latents_BLD.double().square().sum(0)]).cpu()
    result |= {
        "residual": torch.stack(errors, dim=1).cpu(),
        "moments": moments,
        "codes": torch.cat(output.codes_BT, dim=1).cpu(),
    }
    return result | {"codes_again": model.encode(batch["eval_surface"], batch.get("sharp_again")).cpu()}


def latent_variance(moments: list[Tensor], count: int, like_LD: Tensor) -> float:
    """Variance over objects, mean over latents, from the (sum, sum of squares) of each batch of this worker;
    every worker must call it. `like_LD` has the shape of one object's latents, for a worker without a batch.
    """
    mine = torch.stack(moments).sum(0) if moments else torch.zeros(2, *like_LD.shape, dtype=torch.float64)
    total, squares = sum_over_workers(mine.to(like_LD.device)).cpu()
    if count < 2:
        return 1.0
    return float(((squares - total.square() / count) / (count - 1)).mean())


def _decoded(model: CVQ, canvas_BLD: Tensor, batch: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """IoU (B,) and binary cross-entropy (B,) of decoding a canvas at the batch's query points."""
    logits_BQ = model.occupancy_logits(model.decoder.latents(canvas_BLD), batch["points"])
    predicted = logits_BQ > 0
    both, either = (predicted & batch["inside"]).sum(1), (predicted | batch["inside"]).sum(1)
    loss_B = F.binary_cross_entropy_with_logits(logits_BQ.float(), batch["inside"].float(), reduction="none").mean(1)
    return (both / either.clamp_min(1)).cpu().numpy(), loss_B.cpu().numpy()


def code_statistics(codes_NT: Tensor, again_NT: Tensor, model: CVQ) -> dict[str, float]:
    """Utilisation, entropies (bits), digit balance and agreement of one scale's codes over N objects."""
    num_codes, quantizer = model.config.num_codes, model.cqt.quantizer
    by_position = [sample_entropy(codes_T, num_codes) for codes_T in codes_NT.T]
    digits, digits_again = (
        quantizer.codes_to_digits(codes_NT.to(quantizer.radix_C.device)),
        quantizer.codes_to_digits(again_NT.to(quantizer.radix_C.device)),
    )
    balance = [
        sample_entropy(digits[..., c].flatten(), levels) / math.log2(levels)
        for c, levels in enumerate(quantizer.levels)
    ]
    return {
        "utilisation": len(codes_NT.unique()) / expected_distinct(codes_NT.numel(), num_codes),
        "entropy_pooled": sample_entropy(codes_NT.flatten(), num_codes),
        "entropy_position": float(np.mean(by_position)),
        "digit_balance": float(np.min(balance)),
        "agreement": float((codes_NT == again_NT).float().mean()),
        "agreement_digits": float((digits == digits_again).float().mean()),
    }
