"""Makes a folder of released weights from a finished run; refuses if a licence does not allow it.

    python -m pipelines.release RUN --output weights/g3pt-nano-cvq [--evaluation FILE.json] [--weights best]
        [--precision fp16]

How: the folder contains model.safetensors, config.json, the model card README.md and CREDITS.md; `from_pretrained`
loads it. It is made under another name and renamed. Every training object of the model (and of a generator's tokenizer)
must have an open licence (`g3pt.data.licenses`) and an id that matches no pattern of UNCONFIRMED: the licences of those
sources are not confirmed object by object.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import tyro

from g3pt.data.licenses import is_open
from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.flags import DryRun
from pipelines.release import model_card
from pipelines.runs.locks import alone_in
from pipelines.train import trained_on
from pipelines.train.worker import BEST_EXPORT

UNCONFIRMED = ("market*", "trimesh*", "odedstein*", "classic*")
MAX_BYTES = 20 * 10**6


@dataclass(frozen=True, kw_only=True)
class ReleaseFlags(DryRun):
    """Make a folder for publication from a finished training run: weights, configuration, model card, credits."""

    run: tyro.conf.Positional[str]
    """finished training run"""
    output: str
    """folder to make; its name becomes the model's"""
    evaluation: str | None = None
    """JSON of jobs/evaluate.py of this run, for the card; default the run's own test metrics"""
    weights: Literal["last", "best"] = "last"
    """averaged weights: the last, or those of the record with the lowest validation loss"""
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16 halves the file but rounds the weights: evaluate the folder before publishing it"""


def release(flags: ReleaseFlags) -> str | None:
    """Check the sources, write the folder and return its path."""
    from g3pt.training.exports import find_export

    run_dir, output = Path(flags.run), Path(flags.output)
    with bad_input():
        export = find_export(run_dir)
        if export == run_dir:
            raise ValueError(f"{run_dir} is an export; use the run's folder, which the card needs")
        if flags.weights == "best":
            export = best_export(run_dir)
        rows = sources(export)
        check_sources(rows, run_dir)
        evaluation = read_evaluation(Path(flags.evaluation), export) if flags.evaluation else None
    if flags.dry_run:
        return _release(flags, export, rows, evaluation)
    with alone_in(output, is_file=True):
        return _release(flags, export, rows, evaluation)


def _release(
    flags: ReleaseFlags, export: Path, rows: list[dict[str, str]], evaluation: dict[str, Any] | None
) -> str | None:
    """The body of `release`, once its input was checked."""
    run_dir, output = Path(flags.run), Path(flags.output)
    if output.exists():
        raise UsageError(f"{output} exists already: remove it or name another --output")
    made = model_card.read_run(run_dir, export, output.name, rows, evaluation, flags.precision)
    if flags.dry_run:
        print(model_card.card(made))
        return None
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        write(temporary, export, made)
        size = sum(file.stat().st_size for file in temporary.iterdir())
        if size > MAX_BYTES:
            raise UsageError(
                f"{output} would have {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}"
                + ("; try --precision fp16" if flags.precision == "fp32" else "")
            )
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{output}: {size / 1e6:.2f} MB, trained on {len(rows)} objects", file=sys.stderr)
    return str(output)


def best_export(run_dir: Path) -> Path:
    """The export of a finished run's best weights. ValueError if it has none."""
    folder = run_dir / BEST_EXPORT
    if not folder.is_dir():
        raise ValueError(f"{run_dir}: has no best weights: no record of its last phase has a validation loss")
    return folder


def sources(export: Path) -> list[dict[str, str]]:
    """All training objects of the weights, each once. ValueError if the export lists none."""
    rows = [row for name in ("trained_on", "tokenizer_trained_on") for row in trained_on.read(export, name)]
    if not rows:
        raise ValueError(
            f"{export} lists no training objects (trained_on in config.json), so its licence terms are unknown"
        )
    return [by_id for _, by_id in sorted({row["id"]: row for row in rows}.items())]


def refusal(row: Mapping[str, str]) -> str | None:
    """Why an object with this id and licence may not be in released weights; None if it may."""
    pattern = next((pattern for pattern in UNCONFIRMED if fnmatchcase(row["id"], pattern)), None)
    if pattern:
        return f"id matches {pattern}"
    return None if is_open(row["license"]) else f"licence {row['license'] or 'none'}"


def check_sources(rows: Sequence[Mapping[str, str]], where: Path) -> None:
    """ValueError, with counts and examples, if an object may not be in released weights."""
    wrong: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in rows:
        reason = refusal(row)
        if reason:
            wrong[reason] += 1
            example.setdefault(reason, row["id"])
    if wrong:
        told = "; ".join(f"{reason}: {count}, such as {example[reason]}" for reason, count in wrong.most_common())
        raise ValueError(
            f"{where} may not be released: {wrong.total()} of {len(rows)} training objects are not cleared ({told}); "
            "train with --licenses and --exclude-ids"
        )


def read_evaluation(file: Path, export: Path) -> dict[str, Any]:
    """The JSON of an evaluation of exactly these weights. ValueError for anything else."""
    from g3pt.training.exports import export_hash

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        of = found["model"]["export_sha256"]
    except FileNotFoundError:
        raise ValueError(f"{file}: no such evaluation") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not an evaluation's JSON ({error})") from None
    if of != export_hash(export):
        raise ValueError(
            f"{file} is an evaluation of other weights ({of[:8]}) than those of {export} ({export_hash(export)[:8]})"
        )
    return found


def write(folder: Path, export: Path, made: model_card.Made) -> None:
    """Write the files of a release."""
    from safetensors.torch import load_file, save_file

    from g3pt.training.exports import CONFIG_NAME, WEIGHTS_NAME

    folder.mkdir(parents=True)
    for file in (export / CONFIG_NAME, *export.glob("*trained_on.jsonl")):
        shutil.copyfile(file, folder / file.name)
    weights = load_file(export / WEIGHTS_NAME)
    if made.precision == "fp16":
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes it readable for its owner only
    (folder / "README.md").write_text(model_card.card(made), encoding="utf-8")
    (folder / "CREDITS.md").write_text(model_card.credits(made), encoding="utf-8")
