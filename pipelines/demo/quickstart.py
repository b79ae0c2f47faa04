"""The whole pipeline at toy size, on one laptop: first meshes by the released weights, then everything from shapes
to a size sweep.

How: every stage is the function that its own command calls, in one process with one local Ray cluster.
OUTPUT/report.html is written after the stages that add something to look at, so that there are meshes on the screen
while the rest is trained. A finished stage is skipped when the same command starts again. OUTPUT/summary.md holds the
results in short.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g3pt.training.exports import write_json
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import on_disk
from pipelines.cli.flags import Replace
from pipelines.cli.main import absolute
from pipelines.report.page import write_report
from pipelines.runs.locks import alone_in

# Captions of the shapes' own grammar: the text encoder trained here is lost outside it (LOG.md, 2026-11-25).
PROMPTS = (
    "a tall wide chair with a solid back and four legs",
    "a tall round table with a thick top and four legs",
    "a long low bench with a back and a solid base",
    "a short lamp with a wide ball shade and a square base",
    "a short straight mug with a single round handle",
    "a long tall box truck with four wheels",
    "a long deep boat with a pointed bow and a sail",
    "a long hammer with a big block head and a thick handle",
)
RAY = "local"  # the demo never joins a cluster that happens to be about; a start with nothing to do needs none
RESOLUTION = 64  # cells a side, of the solids and of the generated meshes


@dataclass(frozen=True, kw_only=True)
class QuickstartFlags(Replace):
    """Run the whole pipeline on procedural shapes: about 13 minutes on 2 cores, no network, no GPU."""

    output: str = "out/demo"
    """folder for everything; starting again goes on with it"""
    num_shapes: int = 800
    """objects to make and train on"""
    cvq_steps: int = 700
    """optimiser steps of the tokenizer"""
    car_steps: int = 640
    """optimiser steps of the generator"""
    sweep_steps: int = 160
    """optimiser steps of each run of the size sweep"""
    sizes: str = "5k,20k,80k,150k"
    """CAR presets of the size sweep, comma-separated"""
    num_samples: int = 64
    """samples that the evaluation of the generator draws from prompts"""
    num_image_samples: int = 32
    """and from pictures of held-out objects"""
    seed: int = 0
    """seed of shapes, weights, order and sampling"""


@dataclass
class Demo:
    """Where the demo stands: its flags, folders, and the seconds of each stage."""

    flags: QuickstartFlags
    root: Path
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    results: dict[str, str] = dataclasses.field(default_factory=dict)

    def add_seconds(self, title: str, seconds: float) -> None:
        """Count a stage's time, over all starts of the demo in this folder."""
        file = self.root / "seconds.json"
        self.seconds = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.seconds[title] = self.seconds.get(title, 0.0) + seconds
        write_json(file, self.seconds)

    def sum_seconds(self) -> None:
        """All stages together, whichever start went through them; a stage that was killed counts
        from where it was taken up again.
        """
        self.seconds["all"] = sum(self.seconds[title] for title, _ in STAGES)
        write_json(self.root / "seconds.json", self.seconds)

    @property
    def data(self) -> str:
        """The dataset's folder."""
        return str(self.root / "shapes")

    @property
    def runs(self) -> str:
        """The training runs' folder."""
        return str(self.root / "runs")


def quickstart(flags: QuickstartFlags) -> str:
    """All stages in turn; the folder of the results."""
    demo = Demo(flags, Path(absolute(flags.output)))
    with alone_in(demo.root):
        _all_stages(demo)
    return str(demo.root)


def _all_stages(demo: Demo) -> None:
    """The stages, each with its progress and seconds, and the report."""
    page = demo.root / "report.html"
    write_json(demo.root / "stages.json", {"stages": [title for title, _ in STAGES]})  # for status and the report
    print(f"g3pt demo in {demo.root}: {len(STAGES)} stages; Ctrl-C is safe, the same command goes on", file=sys.stderr)
    for number, (title, stage) in enumerate(STAGES, start=1):
        print(f"\n[{number}/{len(STAGES)}] {title}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        with on_disk(lambda done=number - 1: f"{done} of {len(STAGES)} stages are finished ({demo.root})"):
            result = stage(demo)
        if result is None:
            raise UsageError(f"stage {title!r} gave no result")
        demo.results[stage.__name__] = result
        demo.add_seconds(title, time.monotonic() - begun)
        print(f"      {demo.seconds[title]:.0f} s -> {result}", file=sys.stderr, flush=True)
        if stage in SHOWN and not (page.exists() and Path(result).stat().st_mtime < page.stat().st_mtime):
            page = write_report(demo.root)
            print(f"      open {page} in a browser; it grows while this goes on (reload it)", file=sys.stderr)
    demo.sum_seconds()
    print("\n" + write_summary(demo), file=sys.stderr)
    page = write_report(demo.root)  # again, now that the summary and all seconds are there
    print(f"open {page} in a browser: {page.stat().st_size / 1e6:.1f} MB, no network needed", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------- stages


def make_shapes(demo: Demo) -> str | None:
    """Procedural objects to Parquet, three rendered views each."""
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.job import preprocess

    config = PreprocessConfig(
        source="shapes", output=demo.data, limit=demo.flags.num_shapes, num_shards=max(2, demo.flags.num_shapes // 32),
        resolution=RESOLUTION,
        views=3, view_size=64, num_surface=4096, num_sharp=512, num_queries=8192, seed=demo.flags.seed,
        ray_address=RAY, replace=demo.flags.replace,
    )  # fmt: skip
    return preprocess(config, page=write_report)


def train_tokenizer(demo: Demo) -> str | None:
    """CVQ of preset nano."""
    from pipelines.train.jobs import TrainCVQFlags, train_cvq

    return train_cvq(
        TrainCVQFlags(
            data=demo.data,
            output=demo.runs,
            preset="nano",
            steps=demo.flags.cvq_steps,
            seed=demo.flags.seed,
            ray_address=RAY,
            replace=demo.flags.replace,
        ),
        page=write_report,
    )


def encode_tokens(demo: Demo) -> str | None:
    """Codes of the whole dataset by the frozen tokenizer."""
    from pipelines.derive.tokens import encode_dataset

    kind = encode_dataset(demo.data, demo.results["train_tokenizer"], ray_address=RAY)
    return str(Path(demo.data) / "derived" / kind)


def train_generator(demo: Demo) -> str | None:
    """CAR of preset nano with its small text and image encoders."""
    from pipelines.train.jobs import TrainCARFlags, train_car

    tokenizer, seed = demo.results["train_tokenizer"], demo.flags.seed
    return train_car(
        TrainCARFlags(
            data=demo.data,
            tokenizer=tokenizer,
            output=demo.runs,
            preset="nano",
            steps=demo.flags.car_steps,
            seed=seed,
            ray_address=RAY,
            replace=demo.flags.replace,
        ),
        page=write_report,
    )


def generate_meshes(demo: Demo) -> str | None:
    """A few prompts to GLB files."""
    return _generate(demo, demo.results["train_generator"], "meshes")


def generate_released(demo: Demo) -> str | None:
    """The same prompts and seeds by the released weights, which were trained longer."""
    return _generate(demo, None, "released")


def _generate(demo: Demo, model: str | None, name: str) -> str | None:
    from pipelines.generate.config import GenerateConfig
    from pipelines.generate.job import generate

    prompts = demo.root / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"id": f"prompt-{i}", "text": text, "seed": i}) + "\n" for i, text in enumerate(PROMPTS)),
        encoding="utf-8",
    )
    return generate(
        GenerateConfig(
            model=model,
            output=str(demo.root / name),
            prompts=str(prompts),
            resolution=RESOLUTION,
            ray_address=RAY,
            replace=demo.flags.replace,
        ),
        page=write_report,
    )


def evaluate_tokenizer(demo: Demo) -> str | None:
    """Reconstruction of the test split."""
    return _evaluate(demo, demo.results["train_tokenizer"], "tokenizer.json")


def evaluate_generator(demo: Demo) -> str | None:
    """Samples of prompts, half of them unseen, against the training objects."""
    return _evaluate(demo, demo.results["train_generator"], "generator.json")


def _evaluate(demo: Demo, model: str, name: str) -> str | None:
    from pipelines.evaluate.config import EvaluateFlags
    from pipelines.evaluate.job import evaluate

    flags = EvaluateFlags(
        model=model,
        data=demo.data,
        output=str(demo.root / name),
        resolution=RESOLUTION,
        coarse=RESOLUTION // 4,
        num_samples=demo.flags.num_samples,
        num_image_samples=demo.flags.num_image_samples,
        num_detailed=8,
        num_compared=64,
        num_workers=2,
        ray_address=RAY,
        replace=demo.flags.replace,
    )
    return evaluate(flags, page=write_report)


def sweep_sizes(demo: Demo) -> str | None:
    """One CAR per size on the same tokens and captions, without pictures, and the law through their losses."""
    from pipelines.study.config import SweepFlags
    from pipelines.study.job import scaling_sweep

    tokenizer, steps = demo.results["train_tokenizer"], demo.flags.sweep_steps
    return scaling_sweep(
        SweepFlags(
            data=demo.data,
            tokenizer=tokenizer,
            output=str(demo.root / "study"),
            sizes=demo.flags.sizes,
            steps=steps,
            num_workers=0,
            set="image_encoder=none",
            ray_address=RAY,
            replace=demo.flags.replace,
        ),
        page=write_report,
    )


STAGES: tuple[tuple[str, Callable[[Demo], str | None]], ...] = (
    ("generate meshes with the released weights (Ray actors)", generate_released),
    ("shapes to Parquet (Ray Data)", make_shapes),
    ("train the tokenizer CVQ (Ray Train)", train_tokenizer),
    ("evaluate the tokenizer", evaluate_tokenizer),
    ("encode tokens (Ray actors)", encode_tokens),
    ("train the generator CAR (Ray Train)", train_generator),
    ("generate meshes (Ray actors)", generate_meshes),
    ("evaluate the generator", evaluate_generator),
    ("sweep sizes and fit (Ray Tune)", sweep_sizes),
)
SHOWN = (
    generate_released,
    evaluate_tokenizer,
    generate_meshes,
    evaluate_generator,
)  # stages after which the report is written

# ------------------------------------------------------------------------------------------------------------ summary


def write_summary(demo: Demo) -> str:
    """OUTPUT/summary.md: what was made, how good it is, how long it took; gives its text."""
    tokenizer = json.loads(Path(demo.results["evaluate_tokenizer"]).read_text(encoding="utf-8"))
    generator = json.loads(Path(demo.results["evaluate_generator"]).read_text(encoding="utf-8"))
    study = Path(demo.results["sweep_sizes"])
    fit = json.loads((study / "fit.json").read_text(encoding="utf-8"))
    dataset = json.loads((Path(demo.data) / "dataset.json").read_text(encoding="utf-8"))
    lines = [
        "# g3pt demo",
        "",
        "Toy size: procedural shapes, models of under a million parameters, minutes of training on a CPU.",
        "",
    ]
    lines += ["| what | value |", "|---|---|"]
    lines += [
        f"| objects (train / val / test) | {' / '.join(str(n) for n in dataset['splits'].values())}; "
        f"{dataset['counts']} |"
    ]
    lines += [f"| {name} | {value} |" for name, value in metric_rows(tokenizer["metrics"], generator["metrics"])]
    lines += [f"| scaling, {fit['num_sizes']} sizes | {fit['status']}; pure power law exponent {_exponent(fit)} |", ""]
    lines += ["The text encoder was trained here on the captions of these shapes: its vocabulary is closed.", ""]
    lines += [
        "| stage | seconds |",
        "|---|---|",
        *(f"| {title} | {demo.seconds[title]:.0f} |" for title in (*dict(STAGES), "all")),
        "",
    ]
    lines += ["Pictures: " + ", ".join(f"[{p.name}]({p.relative_to(demo.root)})" for p in pictures(demo)), ""]
    lines += [
        "How each number was made stands in `tokenizer.json` and `generator.json` under `protocol`; "
        "[report.html](report.html) shows it all.",
        f"Runs: `mlflow ui --backend-store-uri sqlite:///{demo.root}/mlflow.db`",
    ]
    text = "\n".join(lines) + "\n"
    (demo.root / "summary.md").write_text(text, encoding="utf-8")
    return text


def metric_rows(tokenizer: dict[str, Any], generator: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the summary that come from the two evaluations."""
    num_scales = sum(key.startswith("iou_first_") for key in tokenizer)
    first, lost = (
        [tokenizer[name.format(k)] for k in range(1, num_scales + 1)]
        for name in ("iou_first_{}_scales", "iou_drop_shuffled_scale_{}")
    )
    low, high = generator["family_accuracy_interval_95"]
    return [
        ("tokenizer, test split: volume IoU / near-surface IoU",
         f"{tokenizer['iou_volume']:.3f} / {tokenizer['iou_near']:.3f}"),
        ("Chamfer / F-score at 0.02", f"{tokenizer['chamfer']:.4f} / {tokenizer['f_score_0.02']:.3f}"),
        ("IoU by number of scales", " ".join(f"{value:.3f}" for value in first)),
        ("IoU lost when one scale's codes are another object's", " ".join(f"{value:.3f}" for value in lost)),
        ("generator: samples of the prompted family",
         f"{generator['family_accuracy']:.3f} ({low:.3f} to {high:.3f}), chance {generator['family_chance']:.3f}"),
        ("the same, prompts never trained on", f"{generator['family_accuracy_unseen']:.3f}"),
        *([("the same, given only a held-out picture",
            f"{generator['image_family_accuracy']:.3f}")]
          if generator.get("image_family_accuracy") is not None else []),
        *([("attributes of the prompt found on the mesh",
            f"{_interval(generator, 'attribute_agreement')}, chance {generator['attribute_chance']:.3f}")]
          if generator.get("attribute_agreement") is not None else []),
        ("samples watertight and in one body", _interval(generator, "valid_share")),
        ("nearest training object, median Chamfer",
         f"{generator['nearest_chamfer_median']:.4f}; test objects {generator['held_out_nearest_chamfer_median']:.4f}"),
    ]  # fmt: skip


def _interval(found: dict[str, Any], name: str) -> str:
    low, high = found[f"{name}_interval_95"]
    return f"{found[name]:.3f} ({low:.3f} to {high:.3f})"


def _exponent(fit: dict[str, Any]) -> str:
    law = fit["pure_power_law"]
    low, high = law["interval_95"]["exponent"]
    return f"{law['exponent']:.3f} ({low:.3f} to {high:.3f})"


def pictures(demo: Demo) -> list[Path]:
    """The PNG files that were made."""
    found = [demo.root / "tokenizer.png", demo.root / "generator.png", demo.root / "study" / "curve.png"]
    return [path for path in found if path.is_file()]
