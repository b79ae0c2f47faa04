"""Checks of a training command before Ray starts, and what gives two runs different names."""

import dataclasses
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from g3pt.config import TrainConfig, car_preset, cvq_preset
from g3pt.data import batches, datasets, reading, records
from g3pt.data.selection import Selection
from g3pt.models.tokenizer import CVQ
from g3pt.training import optimizer
from g3pt.training.exports import read_export_config
from g3pt.training.memory import Activations
from pipelines.cli.errors import UsageError
from pipelines.cluster import session
from pipelines.derive import tokens
from pipelines.runs.identity import RunSpec
from pipelines.train import follow, jobs, memory, run, trained_on
from pipelines.train.jobs import TrainCARFlags, TrainCVQFlags, train_car, train_cvq
from pipelines.train.plan import schedule_line
from tests.g3pt.tiny import tiny_tokenizer
from tests.pipelines.toy_data import TOY, toy_row, write_toy_dataset, write_toy_tokenizer


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("jobs")
    return {
        "data": str(write_toy_dataset(folder / "data").path),
        "tokenizer": str(write_toy_tokenizer(folder / "tokenizer")),
    }


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Ray started")

    monkeypatch.setattr(session, "connect", refuse)


POINTS = ("num_points", "num_encode_points", "num_volume_queries", "num_near_queries")
COMMANDS = {"cvq": (TrainCVQFlags, train_cvq), "car": (TrainCARFlags, train_car)}


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"licenses": "NOSUCH,CC0-1.0"}, r"no training object has a licence of NOSUCH; theirs are CC0-1.0 \(\d+\)$"),
        ({"licenses": "cc0-1.0"}, "no training object has a licence of cc0-1.0"),
        (
            {"exclude_ids": "toy*"},
            r"nothing to train on: the selection leaves out (\d+) of \1 training objects: toy\* \1$",
        ),
    ],
)
def test_a_selection_that_cannot_be_met_is_one_line(
    stage: str, flags: dict, says: str, paths: dict, tmp_path: Path
) -> None:
    flags_class, run = COMMANDS[stage]
    given = {name: paths[name] for name in ("data", "tokenizer") if name in flags_class.__dataclass_fields__}
    with pytest.raises(UsageError, match=says):
        run(flags_class(**given, output=str(tmp_path / "runs"), **flags))
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_needs_the_query_points_that_a_generator_does_not(tmp_path: Path) -> None:
    bare = write_toy_dataset(tmp_path / "data", count=20, config=dataclasses.replace(TOY, num_sharp=0, num_queries=0))
    tokenizer = write_toy_tokenizer(tmp_path / "tokenizer")
    assert jobs.car_spec(str(bare.path), str(tokenizer), "nano", *car_preset("nano")).stage == "car"
    model = tiny_tokenizer().config
    codes = tokens.load_codes(bare, tokens.encode_dataset(bare.path, tokenizer, use_ray=False))
    assert len(codes) == 18 and {len(one) for one in codes.values()} == {model.num_tokens}
    for changes, column, given in (
        ({}, "volume_points", "num-queries"),
        ({"num_volume_queries": 0}, "near_points", "num-queries"),
        ({"num_sharp_points": 8}, "sharp", "num-sharp"),
    ):
        with pytest.raises(
            UsageError, match=rf"stores 0 per object in column {column} \(--{given} of jobs/preprocess.py\)$"
        ):
            jobs.cvq_spec(str(bare.path), "tiny", dataclasses.replace(model, **changes), cvq_preset("nano")[1])


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize(("name", "module"), [("data_order", batches), ("step_rules", optimizer)])
def test_another_order_of_the_data_or_other_steps_are_another_run(
    stage: str, name: str, module: ModuleType, paths: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spec() -> RunSpec:
        if stage == "cvq":
            few = dataclasses.replace(cvq_preset("nano")[0], **{name: 8 for name in POINTS})
            return jobs.cvq_spec(paths["data"], "nano", few, cvq_preset("nano")[1])
        return jobs.car_spec(paths["data"], paths["tokenizer"], "nano", *car_preset("nano"))

    now = spec()
    older = dataclasses.replace(now, config={k: v for k, v in now.config.items() if k != name})
    monkeypatch.setattr(module, name.upper(), getattr(module, name.upper()) + 1)
    assert len({now.name, older.name, spec().name}) == 3, "no run without a version, or of another, is resumed"


@pytest.mark.parametrize("stage", COMMANDS)
def test_how_a_run_is_computed_is_no_part_of_its_name(
    stage: str, paths: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(run, "train_run", lambda spec, *_, **__: names.append(spec.name) or tmp_path)
    flags_class, command = COMMANDS[stage]
    given = {name: paths[name] for name in ("data", "tokenizer") if name in flags_class.__dataclass_fields__}
    if stage == "cvq":
        given["set"] = ",".join(f"{name}=8" for name in POINTS)
    for computed in ({}, {"micro_batch": 4}, {"num_workers": 4}, {"num_workers": 2, "micro_batch": 1}):
        command(flags_class(**given, output=str(tmp_path / "runs"), batch_size=16, **computed))
    assert len(names) == 4 and len(set(names)) == 1
    if stage == "cvq":
        given["set"] += ",quantizer=lfq"
        for computed in ({}, {"micro_batch": 4}, {"num_workers": 2, "micro_batch": 2}, {"num_workers": 4}):
            command(flags_class(**given, output=str(tmp_path / "runs"), batch_size=16, **computed))
        assert names[4] == names[7] != names[5] == names[6], "LFQ's entropy term reads the micro-batch of all workers"


def test_auto_is_resolved_before_the_name_and_recorded(
    paths: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU of 24 MiB has room for four objects of 4 MiB; LFQ's runs are named by that, FSQ's are not."""
    specs: list[RunSpec] = []
    activations = Activations(fixed=0, per_object=4 * 2**20, batch_per_object=0)
    planned = memory.Needs(trained=100, frozen=0, gathered=None, precision="fp32", activations=activations)
    monkeypatch.setattr(memory, "needs", lambda *_, **__: planned)
    monkeypatch.setattr(run, "train_run", lambda spec, *_, **__: specs.append(spec) or tmp_path)
    given = {"data": paths["data"], "output": str(tmp_path / "runs"), "batch_size": 16}
    for quantizer, computed in (
        ("fsq", {}),
        ("fsq", {"gpu_memory": 24 / 1024}),
        ("fsq", {"gpu_memory": 24 / 1024, "device": "cpu"}),
        ("lfq", {}),
        ("lfq", {"gpu_memory": 24 / 1024}),
    ):
        points = ",".join(f"{name}=8" for name in POINTS)
        train_cvq(TrainCVQFlags(**given, set=f"{points},quantizer={quantizer}", **computed))
    found = [spec.config["computed"]["micro_batch"] for spec in specs]
    assert found == [16, 4, 16, 16, 4]
    assert specs[0].name == specs[1].name == specs[2].name and specs[3].name != specs[4].name
    assert specs[4].config["objects_at_once"] == 4 and "objects_at_once" not in specs[1].config
    assert "nano: 4 objects at once per worker, no recomputation (0.0 GiB per GPU" in capsys.readouterr().err
    run_dir = run.prepare_run(specs[0], tmp_path / "runs")
    for spec in (specs[1], specs[0]):
        assert run.prepare_run(spec, tmp_path / "runs") == run_dir
        assert json.loads((run_dir / "config.json").read_text())["config"]["computed"] == spec.config["computed"]


def test_lfq_on_a_cluster_of_unknown_gpus_is_asked_for_their_memory(paths: dict, tmp_path: Path) -> None:
    points = ",".join(f"{name}=8" for name in POINTS)
    flags = TrainCVQFlags(
        data=paths["data"], output=str(tmp_path), set=f"{points},quantizer=lfq", ray_address="10.0.0.1:6379"
    )
    with pytest.raises(UsageError, match="no GPU to derive it from: give --micro-batch N, or --gpu-memory GIB"):
        train_cvq(flags)


@pytest.mark.parametrize(("stage", "preset"), [("cvq", "micro"), ("cvq", "small"), ("car", "micro"), ("car", "small")])
def test_other_values_of_a_preset_are_another_run(stage: str, preset: str, paths: dict) -> None:
    """So an unfinished run is not resumed after its preset was changed."""
    model, train = (cvq_preset if stage == "cvq" else car_preset)(preset)
    spec = RunSpec(
        stage=stage, preset=preset, seed=0,
        config={"model": dataclasses.asdict(model), "train": dataclasses.asdict(train)},
    )  # fmt: skip
    changes = (("model", {"num_heads": 1}), ("train", {"batch_size": 64 * 3}), ("train", {"learning_rate": 1.0}))
    others = [
        dataclasses.replace(spec, config={**spec.config, part: {**spec.config[part], **changed}})
        for part, changed in changes
    ]
    assert len({spec.name, *(other.name for other in others)}) == 1 + len(changes)
    same = {**spec.config, "computed": {"micro_batch": 4}, "model": {**spec.config["model"], "checkpoint_layers": True}}
    assert dataclasses.replace(spec, config=same).name == spec.name


def test_a_selection_says_what_it_leaves_out_and_names_another_run(
    paths: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = []
    for more in ({}, {"exclude_ids": "toy/00*, classic*"}, {"exclude_ids": "toy/00*", "licenses": "CC0-1.0"}):
        selection = jobs.chosen(TrainCARFlags(**paths, output="runs", **more))
        specs.append(jobs.car_spec(paths["data"], paths["tokenizer"], "nano", *car_preset("nano"), selection))
    (said, _) = capsys.readouterr().err.splitlines()
    left = int(
        re.search(r"data: the selection leaves out (\d+) of 4\d training objects: classic\* 0, toy/00\* \1$", said)[1]
    )
    assert len({spec.name for spec in specs}) == 3 and "exclude_ids" not in specs[0].config
    ids = [[row["id"] for row in trained_on.collect(spec)] for spec in specs]
    assert len(ids[1]) == len(ids[0]) - left and not [i for i in ids[1] if i.startswith("toy/00")] and ids[1] == ids[2]
    arrays = reading.load_arrays(paths["data"], "train", ["id"], selection=Selection.of(specs[1].config))
    assert arrays["id"] == ids[1], "what is trained on is what the export lists"


def test_an_export_of_many_objects_lists_them_beside_its_config(
    paths: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"o{k}", "license": "MIT", "author": "a\nb \u2028", "url": ""} for k in range(30)]
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, limit in ((few, 30), (many, 29)):
        monkeypatch.setattr(trained_on, "MAX_INLINE", limit)
        tiny_tokenizer().save_pretrained(folder, extra={"trained_on": trained_on.note(rows, folder)})
        assert trained_on.read(folder) == rows
        assert CVQ.from_pretrained(folder).config == tiny_tokenizer().config
    assert read_export_config(few)["trained_on"] == rows
    assert {name: read_export_config(many)["trained_on"][name] for name in ("objects", "licenses")} == {
        "objects": 30,
        "licenses": {"MIT": 30},
    }
    (many / "trained_on.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="its sha256 differs"):
        trained_on.read(many)


def test_the_plan_says_how_the_learning_rate_goes() -> None:
    train = TrainConfig(steps=1000, batch_size=8, learning_rate=2e-3)
    model = car_preset("base")[0]
    said = "learning rate 0.002, 0.002 of hidden matrices; cosine: 20 steps of warm-up, 980 of a cosine to zero"
    assert schedule_line(model, train) == said
    wsd = dataclasses.replace(train, schedule="wsd", warmup_samples=400, base_width=128)
    said = (
        "learning rate 0.002, 0.0005 of hidden matrices; wsd: 50 steps of warm-up, 750 constant, 200 of 1 - sqrt "
        "to zero"
    )
    assert schedule_line(model, wsd) == said


def test_mlflow_shows_the_schedule(paths: dict) -> None:
    """Only what the run reads: a cosine has no cooldown, a stated share no stated samples."""
    model, train = car_preset("nano")

    def shown(config: TrainConfig) -> dict:
        params = follow.card(
            jobs.car_spec(paths["data"], paths["tokenizer"], "nano", model, config), Path("run")
        ).params
        names = ("schedule", "warmup_share", "warmup_samples", "cooldown_share", "beta2")
        return {name: params[name] for name in names if name in params}

    assert shown(train) == {"schedule": "cosine", "warmup_share": 0.08, "beta2": 0.95}
    wsd = dataclasses.replace(train, schedule="wsd")
    assert shown(wsd) == {"schedule": "wsd", "warmup_share": 0.08, "cooldown_share": 0.2, "beta2": 0.95}


def test_an_object_store_is_refused_before_anything_is_encoded(paths: dict) -> None:
    with pytest.raises(UsageError, match="s3://bucket/runs: runs on an object store are not supported yet"):
        train_car(TrainCARFlags(**paths, output="s3://bucket/runs"))
    assert not (Path(paths["data"]) / "derived").exists()


def test_another_caption_makes_another_run(paths: dict, tmp_path: Path) -> None:
    """Captions are not in the fingerprint: the ids and meshes are the same."""
    rows = [toy_row(number) for number in range(60)]
    rows[0]["caption"] = "something else"
    shards = {}
    for index in range(3):
        mine = [row for row in rows if records.shard_index(row["id"], 3) == index]
        shards[index] = datasets.write_shard(tmp_path / "data", index, mine, TOY, num_shards=3)
    datasets.write_dataset(tmp_path / "data", TOY, {"toy": 1}, 3, shards)
    here, there, copy = (
        jobs.car_spec(str(data), paths["tokenizer"], "nano", *car_preset("nano"))
        for data in (paths["data"], tmp_path / "data", write_toy_dataset(tmp_path / "copy").path)
    )
    assert here.config["dataset"] == there.config["dataset"]
    assert here.name != there.name
    assert here.name == copy.name, "the place does not matter"


@pytest.mark.parametrize("steps", [1, 7, 60, 250, 470, 1199])
def test_a_short_run_saves_only_where_it_reports(steps: int) -> None:
    """Otherwise the first mean after resuming would cover fewer steps than that of an uninterrupted run."""
    flags = TrainCVQFlags(data="data", output="runs", steps=steps)
    config = jobs._varied(dataclasses.replace(car_preset("nano")[1], steps=1200), flags)
    assert config.checkpoint_every % config.log_every == 0
    assert steps // config.checkpoint_every >= min(5, steps)


def test_fewer_workers_have_equal_shares_too_and_lfq_refuses_them(paths: dict, tmp_path: Path) -> None:
    flags = {"data": paths["data"], "output": str(tmp_path / "runs")}
    with pytest.raises(ValueError, match="--min-workers must be from 1 to --num-workers 2, got 3"):
        TrainCVQFlags(**flags, num_workers=2, min_workers=3)
    with pytest.raises(UsageError, match="--batch-size 16 is not a multiple of --min-workers 3"):
        train_cvq(TrainCVQFlags(**flags, num_workers=4, min_workers=3, dry_run=True))
    changes = ",".join(["quantizer=lfq", *(f"{name}=8" for name in POINTS)])
    with pytest.raises(UsageError, match="--min-workers: with LFQ the number of workers changes the weights"):
        train_cvq(TrainCVQFlags(**flags, num_workers=4, min_workers=2, device="cpu", set=changes))
