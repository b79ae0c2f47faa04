"""Follows a training run from the driver: progress lines, alarms and its MLflow run, all read from its ledger."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g3pt.training.alarm import Alarm, alarm_line, in_words, skipped_line
from pipelines.cli.progress import Progress, say
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger, NewRecords, Periodic, Record
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, code
from pipelines.tracking.client import best_effort
from pipelines.tracking.models import Model
from pipelines.tracking.tracked import Outcome, WritePage, followed
from pipelines.train.checkpoints import checkpointed

TRAIN_PARAMS = (
    "steps",
    "batch_size",
    "learning_rate",
    "base_width",
    "schedule",
    "warmup_share",
    "warmup_samples",
    "cooldown_share",
)
TRAIN_PARAMS += ("beta2", "weight_decay", "precision")  # fields of a TrainConfig that MLflow shows


def is_finished(run_dir: Path) -> bool:
    """Whether the run has its `_SUCCESS`."""
    return (run_dir / "_SUCCESS").exists()


class Follower(Periodic):
    """Shows the newest record of a run's ledger and each new alarm.

    Runs in the driver, because prints of workers stay in Ray's logs.
    """

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        super().__init__(self.show)
        self.name, self.run_dir = spec.name, run_dir
        train, self.new = spec.config["train"], NewRecords(Ledger.of(run_dir))
        total = train["steps"] * train["batch_size"]
        done = total if is_finished(run_dir) else checkpointed(run_dir)
        state = {"run": spec.name, "done": done, "tokens_per_unit": tokens_per_sample(spec)}
        self.progress = Progress("train", total, "samples", **state)
        self.heard, self.alarm = 0.0, Alarm()
        earlier = self.new.read()
        self.shown = earlier[-1]["step"] if earlier else None
        self.alarms(earlier)  # an earlier start has reported these

    def __enter__(self) -> "Follower":
        self.progress.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.progress.__exit__(*raised)
        told = {fault.key for fault in self.alarm.active()}
        last = [fault for fault in self.alarm.active(is_finished(self.run_dir)) if fault.key not in told]
        if last:
            say(f"  {self.name}: alarm at its end: {in_words(last)}")

    def show(self) -> None:
        """Show the newest record once, and new alarms."""
        records = self.new.read()
        for record in [r for r in records[-1:] if r["step"] != self.shown]:
            self.shown = record["step"]
            numbers = {name: record[name] for name in ("loss", "val_iou", "val_ce") if name in record}
            self.progress.show(int(record["step"]), rate=record.get("samples_per_second"), **numbers)
        for line in self.alarms(records):
            say(f"  {self.name}: {line}")

    def alarms(self, records: list[Record]) -> list[str]:
        """Lines about alarms that begin, and steps that were skipped, in records not seen before."""
        new = [record for record in records if record["step"] > self.heard]
        self.heard = new[-1]["step"] if new else self.heard
        found = [(record["step"], self.alarm.update(record)) for record in new]
        skipped = skipped_line(new)
        lines = [f"alarm at {step:.0f} samples: {in_words(faults)}" for step, faults in found if faults]
        return lines + [skipped] * bool(skipped)


def tokens_per_sample(spec: RunSpec) -> int:
    """Tokens per object of a generator's run; 0 for a tokenizer's."""
    from g3pt.training.exports import read_export_config

    return sum(read_export_config(spec.paths["tokenizer"])["model"]["scales"]) if "tokenizer" in spec.paths else 0


@contextlib.contextmanager
def tracked(
    spec: RunSpec, run_dir: Path, output: str | Path, parent: str | None = None, page: WritePage | None = None
) -> Iterator[Outcome]:
    """Inside the block the run's ledger is shown as progress and copied to its MLflow run.

    Yields the Outcome that MLflow shows.
    """
    if checkpointed(run_dir) and not is_finished(run_dir):
        say(f"  {spec.name}: resumes from its checkpoint at {checkpointed(run_dir)} samples")
    ledger, shown = Ledger.of(run_dir), card(spec, run_dir, "scaling" if parent else "")
    with (
        Follower(spec, run_dir),
        followed(
            shown, output, finished=lambda: is_finished(run_dir), ledger=ledger, parent=parent, page=page
        ) as outcome,
    ):
        try:
            yield outcome
        finally:
            if is_finished(run_dir):
                best_effort("describing the run in MLflow", lambda: describe_finished(spec, run_dir, outcome))


def card(spec: RunSpec, run_dir: Path, experiment: str = "") -> Card:
    """What MLflow shows of a training run; `experiment` is scaling for a run of a study, by default the stage's own."""
    model, train = spec.config.get("model", {}), spec.config["train"]
    params = {"preset": spec.preset, "seed": spec.seed, "samples": train["steps"] * train["batch_size"]}
    unused = {"cooldown_share"} if train.get("schedule") != "wsd" else set()
    params |= {name: train[name] for name in TRAIN_PARAMS if train.get(name) is not None and name not in unused}
    params |= {name: model[name] for name in ("scales", "width", "quantizer", "depth", "head") if name in model}
    params |= {name: ",".join(spec.config[name]) for name in ("licenses", "exclude_ids") if spec.config.get(name)}
    dataset = cards.dataset_input(spec.paths.get("data"), spec.config.get("dataset"))
    params |= {"dataset": cards.label(dataset)} if dataset else {}
    models, tags = {}, {"g3pt.preset": spec.preset, "g3pt.config_hash": spec.hash8}
    if spec.stage == "car" and "tokenizer" in spec.paths:
        models |= cards.models(tokenizer=spec.paths["tokenizer"])
        params["tokenizer"] = cards.model_name(spec.paths["tokenizer"])
        tags["g3pt.tokenizer_hash"] = spec.config["tokenizer"]
    if "init_from" in spec.paths:
        models["init_from"] = Path(spec.paths["init_from"])
        params["init_from"] = cards.model_name(spec.paths["init_from"])
        tags["g3pt.init_from_hash"] = spec.config["init_from"]
    name = f"{spec.preset}-{params['samples']}-s{spec.seed}" if experiment == "scaling" else spec.name
    kind = {"cvq": "Tokenizer CVQ", "car": "Generator CAR"}[spec.stage]
    return Card(
        stage=spec.stage,
        name=name,
        folder=run_dir,
        params=params,
        dataset=dataset,
        models=models,
        experiment=experiment,
        tags=tags,
        title=f"**{kind}**, preset {code(spec.preset)}, seed {spec.seed}: "
        f"{train['steps']:,} steps of {train['batch_size']} samples.",
    )


def describe_finished(spec: RunSpec, run_dir: Path, outcome: Outcome) -> None:
    """Add what MLflow shows of a finished run beside its ledger: files, pictures, hash, alarm, size."""
    from g3pt.training.exports import export_hash
    from pipelines.train.counts import count_parameters
    from pipelines.train.curves import draw_run, draw_tokens

    outcome.artifacts += [
        run_dir / "config.json",
        run_dir / "export" / "config.json",
        draw_run(run_dir, run_dir / "curves.png"),
    ]
    tokens = (
        draw_tokens(run_dir, spec.config["model"]["scales"], run_dir / "tokens.png")
        if spec.stage == "cvq" and "model" in spec.config
        else None
    )
    outcome.artifacts += [tokens] if tokens else []
    outcome.tags["g3pt.export_hash"] = export_hash(run_dir)
    outcome.model = Model(kind=spec.stage, export=run_dir / "export", export_sha256=outcome.tags["g3pt.export_hash"])
    outcome.tags["g3pt.alarm"] = alarm_line(
        Ledger.of(run_dir).read(), finished=True
    )  # empty, so no tag, without an alarm
    outcome.params["parameters"] = count_parameters(spec)
