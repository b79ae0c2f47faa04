"""Evaluation: an oracle scores perfectly, copies and wrong families are detected, untrained models run,
refusals are one line.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from g3pt import shapes
from g3pt.data import datasets, reading, records
from g3pt.metrics import pairwise
from g3pt.models import decoding
from g3pt.models.encoding import encoder_inputs
from pipelines.cli.errors import UsageError
from pipelines.derive import tokens
from pipelines.evaluate import car, cvq, job, near_duplicates, reconstruction_figures
from pipelines.evaluate import generator_figures as figures
from pipelines.evaluate.config import EvaluateFlags
from pipelines.evaluate.generator_samples import mesh_figures
from pipelines.evaluate.job import evaluate
from pipelines.evaluate.reconstruct import SURFACE_NAMES
from pipelines.evaluate.reconstruction_figures import summarise
from pipelines.report.page import write_report
from pipelines.runs.locks import alone_in
from pipelines.tracking import cards
from tests.pipelines.toy_data import write_toy_dataset

FAMILIES = ("bench", "hammer", "vase")
COUNTS = {"train": 4, "test": 2}
CONFIG = records.RecordConfig(num_surface=1024, num_sharp=64, num_queries=1024)


def _flags(data: Path, model: Path, output: Path, **changes: Any) -> EvaluateFlags:
    values: dict[str, Any] = dict(num_samples=8, resolution=32, num_pictures=0, num_queries=512, num_detailed=1)
    return EvaluateFlags(model=str(model), data=str(data), output=str(output), **(values | changes))


@pytest.fixture(autouse=True)
def no_tracking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow, whose new store takes seconds; a slow test covers it."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("pipelines.tracking.tracked.tell", lambda *arguments: None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real solids of three families: four training and two test objects each."""
    from g3pt.geometry.convert import ConvertConfig, convert_mesh

    config = ConvertConfig(resolution=48, num_surface=1024, num_sharp=64, num_queries=1024)
    rows = []
    for family in FAMILIES:
        wanted = dict(COUNTS)
        for index in range(200):
            object_id = f"shapes/{family}-{index:05d}"
            if wanted.get(records.split_of(object_id), 0) > 0:
                wanted[records.split_of(object_id)] -= 1
                shape = shapes.make_shape(object_id)
                tensors = convert_mesh(shape.vertices, shape.faces, config, index)
                row = records.empty_row(object_id, CONFIG)
                row |= {name: tensors[name] for name in CONFIG.tensors}
                rows.append(row | {"status": "ok", "caption": shape.caption, "category": family})
    folder = tmp_path_factory.mktemp("evaluate") / "shapes"
    sidecar = datasets.write_shard(folder, 0, rows, CONFIG)
    datasets.write_dataset(folder, CONFIG, {"resolution": 48}, 1, {0: sidecar})
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models."""
    from tests.g3pt.tiny import tiny_g3pt, tiny_tokenizer

    folder = tmp_path_factory.mktemp("exports")
    return {"cvq": tiny_tokenizer().save_pretrained(folder / "cvq"), "car": tiny_g3pt().save_pretrained(folder / "car")}


def test_an_oracle_tokenizer_is_perfect(
    dataset: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of the true solid give IoU 1 and a mesh within one grid cell: scores come from the logits,
    not from labels.
    """
    from g3pt.geometry.labels import inside
    from g3pt.geometry.watertight import watertight

    true = {}
    for row in reading.read_rows(dataset, ["id"], "test"):
        shape = shapes.make_shape(row["id"])
        true[row["id"]] = watertight(shape.vertices, shape.faces, 48)
    current: dict[str, Any] = {}
    real_run = cvq.Reconstructor._run
    monkeypatch.setattr(
        cvq.Reconstructor,
        "_run",
        lambda self, item: (current.update(id=item["row"]["id"]), real_run(self, item))[1],
    )

    def oracle(model: Any, latents: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
        solid = true[current["id"]]
        return [np.where(inside(solid.vertices, solid.faces, points), 1.0, -1.0) for points in rows]

    monkeypatch.setattr(decoding, "logits_of_rows", oracle)
    output = evaluate(_flags(dataset, exports["cvq"], tmp_path / "cvq.json", resolution=64))
    found = json.loads(Path(output).read_text())["metrics"]
    assert found["num_objects"] == 6 and found["num_without_mesh"] == 0
    assert found["iou_volume"] == found["iou_near"] == 1.0
    pairs = reading.load_arrays(dataset, "test", ("surface", "eval_surface"))
    copies = [pairwise.surface_metrics(a, b) for a, b in zip(pairs["surface"], pairs["eval_surface"], strict=True)]
    for name in ("chamfer", "normal_consistency"):  # two samples of one solid: what sampling alone gives
        assert found[name] == pytest.approx(np.mean([copy[name] for copy in copies]), rel=0.1)
    assert found["iou_drop_shuffled_scale_1"] == 0.0, "the oracle does not read codes"
    assert found["continuous_iou_volume"] == 1.0 and found["num_detailed"] == found["num_chamfer_by_scale"] == 1
    assert (
        found["continuous_chamfer"]
        == pytest.approx(found["detailed_chamfer"], rel=0.1)
        == found["chamfer_first_4_scales"]
    )
    assert 0.2 < found["grid_iou_volume"] < 0.9 and found["grid_chamfer"] > 2 * found["chamfer"], (
        "bits of a cube don't read logits"
    )


def test_an_untrained_tokenizer_is_scored_by_its_own_logits(
    dataset: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    from g3pt.models.tokenizer import CVQ

    output = evaluate(_flags(dataset, exports["cvq"], tmp_path / "cvq.json", num_queries=1024))
    report = json.loads(Path(output).read_text())
    assert {
        "chamfer",
        "iou",
        "query_points",
        "aggregation",
        "box",
        "seed",
        "grid",
        "continuous",
        "bits",
        "distinct",
        "tails",
    } <= set(report["protocol"])
    assert report["kind"] == "cvq" and len(report["objects"]) == 6
    model = CVQ.from_pretrained(exports["cvq"])
    assert report["metrics"]["bits"] == pytest.approx(model.config.num_tokens * np.log2(model.config.num_codes))
    assert set(report["metrics"]["by_category"]) == set(FAMILIES) and report["metrics"]["num_near_duplicates"] == 0
    for row, surface in zip(
        report["objects"], reading.load_arrays(dataset, "test", ("surface",))["surface"], strict=True
    ):
        continuous = model.decoder.latents(model.encoder(*encoder_inputs(model, [{"surface": surface}])))
        points, packed = (
            reading.load_arrays(dataset, "test", (name,))[name] for name in ("volume_points", "volume_occupancy")
        )
        k = report["objects"].index(row)
        expected = pairwise.volume_iou(
            decoding.logits(model, continuous, points[k]) > 0, records.unpack_occupancy(packed[k])
        )
        assert row["continuous"]["iou_volume"] == pytest.approx(expected, abs=1e-6)
    arrays = reading.load_arrays(dataset, "test", ("id", "surface", "volume_points", "volume_occupancy"))
    codes = tokens.encode(model, [{"surface": surface} for surface in arrays["surface"]])
    for row, codes_S, points, packed in zip(
        report["objects"], codes, arrays["volume_points"], arrays["volume_occupancy"], strict=True
    ):
        import torch

        latents = model.decode_latents(torch.from_numpy(codes_S)[None])
        expected = pairwise.volume_iou(decoding.logits(model, latents, points) > 0, records.unpack_occupancy(packed))
        assert row["iou_volume"] == pytest.approx(expected, abs=1e-6)
        assert len(row["iou_first_scales"]) == len(row["iou_shuffled_scale"]) == 4
        first = model.decode_latents(torch.from_numpy(codes_S)[None], 1)
        alone = pairwise.volume_iou(decoding.logits(model, first, points) > 0, records.unpack_occupancy(packed))
        assert row["iou_first_scales"][0] == pytest.approx(alone, abs=1e-6)
    assert any(row["iou_shuffled_scale"][k] != row["iou_volume"] for row in report["objects"] for k in range(4))


def test_a_shuffled_scale_takes_only_that_scale_from_another_object() -> None:
    worker = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(scales=(1, 3, 2))))
    item = {"codes": np.zeros(6, int), "other": np.arange(10, 16)}
    assert cvq.Reconstructor._mixed(worker, item, 1).tolist() == [0, 11, 12, 13, 0, 0]
    assert item["codes"].sum() == 0, "the object's own codes must stay"


def test_training_objects_in_the_test_split_are_found_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second sample of a training object is a near-duplicate, although its Chamfer is above the threshold;
    a moved object is not.
    """
    random = np.random.default_rng(0)

    def box(size: np.ndarray, count: int = 1024) -> np.ndarray:
        points = random.uniform(-1, 1, (count, 3))
        points[np.arange(count), random.integers(3, size=count)] = random.choice([-1.0, 1.0], count)
        return np.concatenate([points * size, points], axis=1)

    sizes = random.uniform(0.2, 0.9, (12, 3))
    train = [{"id": f"train-{k}", "eval_surface": box(size)} for k, size in enumerate(sizes)]
    monkeypatch.setattr(reading, "read_rows", lambda *arguments: iter(train))
    held = [sizes[7], sizes[3] + 0.004, sizes[5] + 0.1]
    arrays = {name: [box(size) for size in held] for name in ("surface", "eval_surface")}
    info = SimpleNamespace(splits={"train": len(train)})
    objects: list[dict[str, Any]] = [{}, {}, {}]
    rule = near_duplicates.mark_near_duplicates(objects, arrays, info, "test")
    assert [o["near_duplicate"] for o in objects] == [True, True, False] and "0.01" in rule
    assert [o["nearest_train"] for o in objects[:2]] == ["train-7", "train-3"]
    assert pairwise.chamfer(arrays["surface"][0][:, :3], arrays["eval_surface"][0][:, :3]) > near_duplicates.THRESHOLD
    assert 0.03 < objects[2]["nearest_train_chamfer"] < 0.1
    untouched: list[dict[str, Any]] = [{}, {}, {}]
    assert "20000" in near_duplicates.mark_near_duplicates(
        untouched, arrays, SimpleNamespace(splits={"train": 10**6}), "test"
    ) and untouched == [{}, {}, {}]


def _scores(
    iou: float, chamfer: float | None, category: str = "cup", duplicate: bool = False, thickness: float = 0.2
) -> dict[str, Any]:
    """The scores of one object, from `Reconstructor.run` on."""
    surface = {
        name: (0.0 if name.startswith("f_score") else None) if chamfer is None else chamfer for name in SURFACE_NAMES
    }
    verdict = {
        "iou_volume": iou,
        "iou_near": iou / 2,
        "status": "ok" if chamfer is not None else "empty-field",
    } | surface
    return verdict | {
        "id": "x", "category": category, "thickness": thickness, "iou_first_scales": [iou / 2, iou],
        "iou_shuffled_scale": [iou / 4, iou / 2], "near_duplicate": duplicate,
        "continuous": {"iou_volume": 1.0, "iou_near": 1.0}, "grid": verdict, "bits": 100.0, "bits_coded": 90.0,
    }  # fmt: skip


def test_figures_of_known_scores_with_an_object_that_has_no_mesh() -> None:
    objects = [_scores(k / 20, 0.01 * k) for k in range(1, 20)] + [_scores(0.0, None, "bowl", duplicate=True)]
    objects[3]["chamfer_first_scales"], objects[4]["chamfer_first_scales"] = [0.2, 0.04], [None, 0.05]
    found = summarise(objects)
    assert (found["num_objects"], found["num_without_mesh"], found["num_near_duplicates"]) == (20, 1, 1)
    assert found["iou_volume"] == pytest.approx(0.475) and found["distinct_iou_volume"] == pytest.approx(0.5)
    assert found["chamfer"] == pytest.approx(0.1) == found["distinct_chamfer"], "a missing distance has no mean"
    assert found["iou_volume_p05"] == 0.0 and found["iou_volume_median"] == pytest.approx(0.45)
    assert found["chamfer_median"] == pytest.approx(0.11) and found["chamfer_p95"] is None, (
        "the 19th of 20 is finite, the next is missing"
    )
    assert found["f_score_0.01"] == pytest.approx(0.095), "no mesh counts 0"
    assert (found["chamfer_first_1_scales"], found["chamfer_first_2_scales"], found["num_chamfer_by_scale"]) == (
        0.2,
        0.04,
        1,
    )
    assert found["iou_first_1_scales"] == pytest.approx(0.2375) and found["iou_drop_shuffled_scale_2"] == pytest.approx(
        0.2375
    )
    assert found["by_category"]["bowl"] == {
        "num_objects": 1,
        "num_without_mesh": 1,
        "iou_volume": 0.0,
        "iou_near": 0.0,
        "chamfer": None,
        "f_score_0.02": 0.0,
    }
    assert {name: part["num_objects"] for name, part in found["by_thickness"].items()} == {"thick": 20}
    assert (
        found["continuous_iou_volume"] == 1.0
        and found["continuous_chamfer"] is None
        and found["grid_chamfer"] == found["chamfer"]
    )
    json.dumps(found, allow_nan=False)
    shown = dict(reconstruction_figures.table(found))
    assert (
        shown["Chamfer-L1, first k scales, 1 objects"] == "0.2000 0.0400"
        and shown["objects"] == "20 (1 without a mesh)"
    )
    nothing = summarise([_scores(0.0, None)])
    assert nothing["chamfer"] is None and nothing["hausdorff_95_p95"] is None and nothing["f_score_0.02"] == 0.0


def test_figures_by_thickness() -> None:
    """Two thin objects, one of which has no mesh, one thick one; none in between."""
    thin = [_scores(0.2, 0.1, thickness=0.01), _scores(0.0, None, thickness=0.06)]
    found = summarise([_scores(0.9, 0.02, thickness=0.4), *thin])
    assert list(found["by_thickness"]) == ["thin", "thick"]
    assert found["by_thickness"]["thin"] == {
        "num_objects": 2, "num_without_mesh": 1, "iou_volume": pytest.approx(0.1), "iou_near": pytest.approx(0.05),
        "chamfer": pytest.approx(0.1), "f_score_0.02": pytest.approx(0.05), "iou_volume_interval_95": [0.0, 0.2],
        "iou_near_interval_95": [0.0, 0.1],
    }  # fmt: skip
    shown = dict(reconstruction_figures.table(found))
    assert (
        shown["thin (below 4 voxels), 2 objects: IoU / near / Chamfer / F 0.02"] == "0.1000 / 0.0500 / 0.1000 / 0.0500"
    )
    logged = cards.by_thickness(found)
    assert logged["by thickness/iou_volume_thick"] == pytest.approx(0.9)
    assert logged["by thickness/iou_volume_low_thin"] == 0.0 and "by thickness/iou_volume_middle" not in logged


class _Oracle:
    """A sampler that copies training objects: of the prompted family, or of the next one."""

    turn = 0

    def __init__(self, *arguments: Any) -> None:
        self.data = arguments

    def run(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Samples in the form of `Sampler.run`."""
        samples = []
        for prompt, seed in zip(batch["prompts"], batch["seeds"], strict=True):
            family = FAMILIES[(FAMILIES.index(prompt["family"]) + self.turn) % 3]
            points = next(cloud for cloud, category in self.clouds if category == family)
            measured = prompt["attributes"] if self.turn == 0 else {}
            samples.append({**_sample(prompt, seed, points), "measured": measured})
        return samples


def _sample(prompt: dict[str, Any], seed: int, points: np.ndarray) -> dict[str, Any]:
    """A valid sample with these points and no correct attribute."""
    checks = {"num_faces": 12, "num_bodies": 1, "watertight": True, "sampling_floor": 0.06, "measured": {}}
    return {
        **prompt,
        "seed": seed,
        "status": "ok",
        "points": points,
        "mesh": None,
        "seconds": {"codes": 0.1, "mesh": 0.2, "checks": 0.3},
        **checks,
    }


@pytest.mark.parametrize("turn", [0, 1])
def test_copies_and_wrong_families_are_seen(
    dataset: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    arrays = reading.load_arrays(dataset, "train", ("surface", "category"))
    monkeypatch.setattr(
        _Oracle,
        "clouds",
        [(c[:, :3], f) for c, f in zip(arrays["surface"], arrays["category"], strict=True)],
        raising=False,
    )
    monkeypatch.setattr(_Oracle, "turn", turn)
    monkeypatch.setattr(car, "Sampler", _Oracle)
    output = evaluate(_flags(dataset, exports["car"], tmp_path / "car.json", num_samples=24))
    report = json.loads(Path(output).read_text())
    found = report["metrics"]
    assert found["family_accuracy"] == (1.0 if turn == 0 else 0.0)
    assert found["family_chance"] == pytest.approx(1 / 3)
    low, high = found["family_accuracy_interval_95"]
    assert (low > 3 / 4) if turn == 0 else (high < 1 / 4)
    assert found["nearest_chamfer_median"] == pytest.approx(found["nearest_chamfer_of_a_copy"], rel=0.2)
    assert found["nearest_chamfer_ratio"] < 0.75, "copies are nearer to training than held-out objects"
    assert found["num_copies"] == 24 and found["held_out_copy_share"] < 0.5
    assert found["attribute_agreement"] == found["all_attributes"] == (1.0 if turn == 0 else 0.0)
    assert (
        0.2 < found["attribute_chance"] < 0.8
        and found["attribute_agreement_seen"] == found["attribute_agreement_unseen"]
    )
    assert sum(part["num"] for part in found["by_attribute"].values()) == sum(
        len(o["attributes"]) for o in report["objects"]
    )
    assert found["num_compared"] == 6 and 0 < found["cov"] <= 1 and found["train_mmd"] > 0
    assert found["valid_share"] == 1.0 and found["statuses"] == {"ok": 24} and found["num_faces"] == 12
    assert report["seconds_per_object"]["mesh"] == pytest.approx(0.2)
    for told in ("attributes", "validity", "copies", "sets_cov", "sets_one_nna", "seconds_per_object"):
        assert report["protocol"][told]
    assert [o["seed"] for o in report["objects"]] == list(range(24))
    train = {row["caption"] for row in reading.read_rows(dataset, ["caption"], "train")}
    assert [o["text"] not in train for o in report["objects"]] == [o["unseen"] for o in report["objects"]]
    assert sum(o["unseen"] for o in report["objects"]) == 12


@pytest.fixture(scope="module")
def dataset_with_views(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same objects with two views each: the first in the grey of its family, the second black."""
    import dataclasses
    import io

    from PIL import Image

    config, rows = dataclasses.replace(CONFIG, num_views=2), []
    for row in reading.read_rows(dataset, list(CONFIG.tensors) + ["id", "caption", "category"]):
        views = []
        for grey in (100 + FAMILIES.index(row["category"]), 0):
            buffer = io.BytesIO()
            Image.new("RGBA", (20, 20), (grey, grey, grey, 255)).save(buffer, "PNG")
            views.append(buffer.getvalue())
        rows.append(records.empty_row(row["id"], config) | row | {"status": "ok", "views": views})
    folder = tmp_path_factory.mktemp("views") / "shapes"
    datasets.write_dataset(folder, config, {"resolution": 48}, 1, {0: datasets.write_shard(folder, 0, rows, config)})
    return folder


class _Looker:
    """A sampler that recognises a family by the grey of its picture."""

    clouds: dict[str, np.ndarray]

    def __init__(self, *arguments: Any) -> None:
        self.data = arguments

    def run(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Samples in the form of `Sampler.run`; those from text are all benches."""
        import io

        from PIL import Image

        samples = []
        for prompt, seed in zip(batch["prompts"], batch["seeds"], strict=True):
            family = FAMILIES[0]
            if prompt["text"] is None:
                family = FAMILIES[Image.open(io.BytesIO(prompt["image"])).getpixel((5, 5))[0] - 100]
            samples.append(_sample(prompt, seed, self.clouds[family]))
        return samples


def test_first_views_of_held_out_objects_are_a_protocol_of_their_own(
    dataset_with_views: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = reading.load_arrays(dataset_with_views, "train", ("surface", "category"))
    clouds = {f: c[:, :3] for c, f in zip(arrays["surface"], arrays["category"], strict=True)}
    monkeypatch.setattr(_Looker, "clouds", clouds, raising=False)
    monkeypatch.setattr(car, "Sampler", _Looker)
    output = evaluate(_flags(dataset_with_views, exports["car"], tmp_path / "car.json", num_samples=24))
    report = json.loads(Path(output).read_text())
    found, held = report["metrics"], [row["id"] for row in reading.read_rows(dataset_with_views, ["id"], "test")]
    assert found["num_samples"] == len(report["objects"]) == 24 and found["family_accuracy"] < 0.6, (
        "text samples are counted alone"
    )
    assert found["image_num_samples"] == 6 and found["image_family_accuracy"] == 1.0
    assert found["image_family_chance"] == pytest.approx(1 / 3) and found["image_family_accuracy_interval_95"][0] > 0.5
    assert sorted(o["pictured"] for o in report["image_objects"]) == sorted(held), "each held-out object once"
    assert "first view" in report["protocol"]["images"]
    assert "from a held-out picture, no text" in capsys.readouterr().out
    fewer = evaluate(_flags(dataset_with_views, exports["car"], tmp_path / "fewer.json", num_image_samples=2))
    assert json.loads(Path(fewer).read_text())["metrics"]["image_num_samples"] == 2
    none = json.loads(
        Path(
            evaluate(_flags(dataset_with_views, exports["car"], tmp_path / "none.json", num_image_samples=0))
        ).read_text()
    )
    assert none["metrics"]["image_num_samples"] == 0 and "image_objects" not in none


def test_an_untrained_generator_makes_samples_from_pictures(
    dataset_with_views: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    output = evaluate(_flags(dataset_with_views, exports["car"], tmp_path / "car.json", num_samples=2))
    report = json.loads(Path(output).read_text())
    assert report["metrics"]["image_num_samples"] == 6 and report["metrics"]["num_samples"] == 2
    assert [o["seed"] for o in report["image_objects"]] == list(range(6))
    assert all("image" not in o for o in report["image_objects"])


def test_an_untrained_generator_runs_and_repeats(dataset: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    reports = [
        json.loads(Path(evaluate(_flags(dataset, exports["car"], tmp_path / f"car{k}.json"))).read_text())
        for k in range(2)
    ]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["objects"] == reports[1]["objects"]
    found = reports[0]["metrics"]
    assert found["num_samples"] == 8 and found["num_held_out"] == 6
    assert found["held_out_nearest_family_accuracy"] > 1 / 3
    assert reports[0]["protocol"]["seeds"] == [0, 7] and found["image_num_samples"] == 0, "this dataset has no views"
    assert found["rebuilt_num_with_attributes"] == found["solid_num_with_attributes"] == 1, "--num-detailed 1"
    assert found["solid_attribute_agreement"] == 1.0 and reports[0]["seconds_per_object"]["codes"] > 0


def test_a_sample_without_a_mesh_counts_as_wrong() -> None:
    nothing: dict[str, Any] = {
        "text": "t", "family": "chair", "unseen": False, "seed": 0, "nearest": None, "nearest_family": None,
        "chamfer": None, "copy": False,
        "status": "empty-field", "num_faces": 0, "num_bodies": 0, "watertight": False,
        "attributes": {"size": "tall", "base": "four legs"}, "measured": {},
    }  # fmt: skip
    good = nothing | {
        "status": "ok",
        "nearest_family": "chair",
        "chamfer": 0.1,
        "num_faces": 8,
        "num_bodies": 1,
        "watertight": True,
        "measured": {"size": "tall", "base": "?"},
    }
    split = good | {"num_bodies": 2}
    train = {
        "category": ["chair", "table"],
        "caption": [caption for caption, (family, _) in shapes.all_captions().items() if family == "chair"],
    }
    found = figures.summarise([nothing, good, split], train)
    assert found["family_accuracy"] == pytest.approx(2 / 3) and found["num_without_mesh"] == 1
    assert found["nearest_chamfer_median"] == 0.1 and found["family_accuracy_unseen"] is None
    assert found["attribute_agreement"] == pytest.approx(1 / 3) and found["all_attributes"] == 0.0
    assert (
        found["by_attribute"]["size"]["agreement"] == pytest.approx(2 / 3)
        and found["by_attribute"]["base"]["agreement"] == 0.0
    )
    assert found["by_attribute"]["size"]["chance"] == pytest.approx(1 / 2) and found["by_attribute"]["base"][
        "chance"
    ] == pytest.approx(1 / 3)
    assert found["mesh_share"] == found["watertight_share"] == pytest.approx(2 / 3)
    assert found["one_body_share"] == found["valid_share"] == pytest.approx(1 / 3), "two bodies are not one object"
    assert found["statuses"] == {"empty-field": 1, "ok": 2} and found["num_faces"] == 8
    low, high = found["valid_share_interval_95"]
    assert 0 < low < 1 / 3 < high < 1


def test_a_copy_is_as_near_as_two_samples_of_one_surface() -> None:
    assert figures.is_copy(0.025, 0.02) and not figures.is_copy(0.04, 0.02)
    assert not figures.is_copy(None, None)


def test_meshes_are_checked_for_what_makes_them_whole() -> None:
    import trimesh

    box = trimesh.creation.box((1, 1, 1))
    two = trimesh.util.concatenate([box, box.copy().apply_translation((3, 0, 0))])
    assert mesh_figures(box.vertices, box.faces) == {"num_faces": 12, "num_bodies": 1, "watertight": True}
    assert mesh_figures(two.vertices, two.faces) == {"num_faces": 24, "num_bodies": 2, "watertight": True}
    assert not mesh_figures(box.vertices, box.faces[1:])["watertight"]
    assert not mesh_figures(box.vertices, box.faces[:, ::-1])["watertight"], "inside out"
    assert mesh_figures(np.zeros((0, 3)), np.zeros((0, 3), int)) == {
        "num_faces": 0,
        "num_bodies": 0,
        "watertight": False,
    }


def test_held_out_objects_tell_what_ruler_and_tokenizer_allow(dataset: Path) -> None:
    """The solid of a dataset object has the attributes of its caption; one of another seed is skipped."""
    info = datasets.open_dataset(dataset)
    rows = list(reading.read_rows(info, ["id", "caption", "category"], "test"))
    solids = [car.solid_of(row, info) for row in rows]
    assert all(solid and solid["measured"] == solid["attributes"] and solid["watertight"] for solid in solids)
    assert car.solid_of(rows[0] | {"caption": "a red dragon"}, info) is None
    assert car.solid_of(rows[0] | {"id": "meshes/dragon.glb"}, info) is None


def test_a_dataset_without_query_points_evaluates_generators_but_no_tokenizer(
    dataset: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    bare = dataclasses.replace(CONFIG, num_sharp=0, num_queries=0)
    few = write_toy_dataset(tmp_path / "data", config=dataclasses.replace(bare, num_views=2))
    with pytest.raises(UsageError, match=r"no columns volume_points and near_points \(--num-queries 0 of jobs/pre"):
        evaluate(_flags(few.path, exports["cvq"], tmp_path / "cvq.json"))
    info = datasets.open_dataset(dataset)
    held = reading.load_arrays(info, "test", ("id", "caption"))
    rows = car.choose_rebuilt(
        dataclasses.replace(info, config=bare), held, _flags(dataset, exports["car"], tmp_path / "x.json")
    )
    assert rows and all("sharp" not in row and len(row["surface"]) for row in rows)


class _Guided:
    """A sampler that follows its prompt only with guidance on the constant schedule."""

    clouds: dict[str, np.ndarray]

    def __init__(self, *arguments: Any) -> None:
        self.data = arguments

    def run(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Samples in the form of `Sampler.run`."""
        listens = batch["settings"].get("cfg", 0) > 0 and batch["settings"]["cfg_schedule"] == "constant"
        return [
            _sample(prompt, seed, self.clouds[prompt["family"] if listens else FAMILIES[0]])
            | {"measured": prompt["attributes"] if listens else {}}
            for prompt, seed in zip(batch["prompts"], batch["seeds"], strict=True)
        ]


def test_a_guidance_grid_repeats_the_prompts_at_each_strength(
    dataset: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = reading.load_arrays(dataset, "train", ("surface", "category"))
    monkeypatch.setattr(
        _Guided,
        "clouds",
        {f: c[:, :3] for c, f in zip(arrays["surface"], arrays["category"], strict=True)},
        raising=False,
    )
    monkeypatch.setattr(car, "Sampler", _Guided)
    output = evaluate(
        _flags(
            dataset,
            exports["car"],
            tmp_path / "car.json",
            num_samples=12,
            num_detailed=0,
            num_compared=0,
            guidance_grid="2,0",
        )
    )
    report = json.loads(Path(output).read_text())
    points = {(point["cfg"], point["cfg_schedule"]): point for point in report["metrics"]["guidance"]}
    assert list(points) == [(0.0, "ramp"), (2.0, "ramp"), (2.0, "constant")], "no guidance has no schedule"
    assert points[2.0, "constant"]["family_accuracy"] == points[2.0, "constant"]["attribute_agreement"] == 1.0
    assert (
        points[2.0, "ramp"]["family_accuracy"]
        == points[0.0, "ramp"]["family_accuracy"]
        == pytest.approx(1 / 3, abs=0.2)
    )
    assert all(point["num_samples"] == 12 for point in points.values())
    assert report["metrics"]["num_compared"] == 0 and "rebuilt_num_with_attributes" not in report["metrics"]
    assert "guidance 2 constant" in capsys.readouterr().out and "guidance" in report["protocol"]


@pytest.mark.parametrize(
    ("name", "value"), [("cfg", -1.0), ("cfg", math.nan), ("top_k", -1), ("top_p", 1.5), ("temperature", 0.0)]
)
def test_a_number_no_sampler_takes_is_refused_with_its_flag(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} must be "):
        EvaluateFlags(model="m", data="d", output="o.json", **{name: value})


@pytest.mark.parametrize("grid", ["1,x", "-1", "nan", ",", "inf", "0,1e9"])
def test_a_grid_that_is_no_list_of_strengths_is_refused(grid: str) -> None:
    with pytest.raises(ValueError, match="--guidance-grid"):
        EvaluateFlags(model="m", data="d", output="o.json", guidance_grid=grid)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Evaluations that find nothing at once; their outputs are listed."""
    ran: list[str] = []
    found = {
        "protocol": {},
        "metrics": {},
        "objects": [],
        "gallery": [],
        "pictures": [],
        "columns": 1,
        "table": [("a", "b")],
    }
    monkeypatch.setattr(job, "_stage", lambda _: lambda flags, *_: ran.append(flags.output) or found)
    return ran


def test_other_flags_of_a_finished_evaluation_need_replace(
    dataset: Path, exports: dict[str, Path], tmp_path: Path, instant: list[str]
) -> None:
    flags = _flags(dataset, exports["cvq"], tmp_path / "it.json")
    evaluate(flags)
    before = (tmp_path / "it.json").read_bytes()
    for change, said in (
        ({"resolution": 64, "limit": 1}, "--limit 0, not 1; --resolution 32, not 64"),
        ({"model": str(exports["car"])}, f"--model {exports['cvq']}, not {exports['car']}"),
    ):
        with pytest.raises(UsageError, match=f"--output {tmp_path}/it.json was made with {said}: choose another"):
            evaluate(dataclasses.replace(flags, **change))
        assert (tmp_path / "it.json").read_bytes() == before and len(instant) == 1
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UsageError, match="mine.json was made with something else than this command"):
        evaluate(dataclasses.replace(flags, output=str(tmp_path / "mine.json")))
    evaluate(dataclasses.replace(flags, replace=True))
    assert len(instant) == 1, "nothing to replace"
    evaluate(dataclasses.replace(flags, limit=1, replace=True))
    assert len(instant) == 2 and json.loads((tmp_path / "it.json").read_text())["flags"]["limit"] == 1
    moved = dict(json.loads((tmp_path / "it.json").read_text()))
    by_id = moved | {"dataset": {name: value for name, value in moved["dataset"].items() if name != "limited_by"}}
    (tmp_path / "it.json").write_text(json.dumps(by_id))
    evaluate(dataclasses.replace(flags, limit=1))
    assert len(instant) == 3, "the first ids: not the objects of today"
    moved["model"] |= {"export_sha256": "0"}  # trained again at the same place
    (tmp_path / "it.json").write_text(json.dumps(moved))
    evaluate(dataclasses.replace(flags, limit=1))
    assert len(instant) == 4


def test_a_second_start_of_an_evaluation_is_refused(
    dataset: Path, exports: dict[str, Path], tmp_path: Path, instant: list[str]
) -> None:
    flags = _flags(dataset, exports["cvq"], tmp_path / "new" / "it.json")
    with alone_in(tmp_path / "new" / "it.json", is_file=True):
        with pytest.raises(UsageError, match=rf"it.json: another command is working there \(process {os.getpid()} on "):
            evaluate(flags)
        evaluate(dataclasses.replace(flags, output=str(tmp_path / "new" / "other.json")))
    assert instant == [str(tmp_path / "new" / "other.json")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cvq", "car"])
def test_ray_actors_give_the_same_numbers(
    dataset: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
) -> None:
    monkeypatch.setattr("pipelines.tracking.tracked.tell", lambda *arguments: None)
    reports = [
        json.loads(Path(evaluate(_flags(dataset, exports[kind], tmp_path / f"{n}.json", num_workers=n))).read_text())
        for n in (0, 2)
    ]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["objects"] == reports[1]["objects"]


SHEETS = ["cvq.png", "cvq.worst.png", "cvq.credits.md", "cvq.worst.credits.md"]


@pytest.mark.slow
def test_pictures_and_tracking(dataset: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    evaluate(_flags(dataset, exports["cvq"], tmp_path / "cvq.json", num_pictures=2), page=write_report)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("g3pt/evaluate")
    (run,) = client.search_runs([experiment.experiment_id])
    report = json.loads((tmp_path / "cvq.json").read_text())
    assert run.data.metrics["iou_volume"] == pytest.approx(report["metrics"]["iou_volume"])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"cvq.json", "report.html", *SHEETS}
    assert (
        "| 1 | shapes/" in (tmp_path / "cvq.credits.md").read_text()
        and "| 2 | shapes/" in (tmp_path / "cvq.worst.credits.md").read_text()
    )
    from PIL import Image

    with Image.open(tmp_path / "cvq.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("kind", ["cvq", "car"])
def test_pictured_objects_lie_beside_the_json(
    kind: str, dataset_with_views: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gallery has the pictured objects as files that open; if one is missing, gallery and JSON are made again."""
    import trimesh
    from PIL import Image

    from pipelines.evaluate.gallery import decode_cloud

    monkeypatch.setattr("pipelines.evaluate.job.draw_pictures", lambda *arguments: [])
    flags = _flags(dataset_with_views, exports[kind], tmp_path / "it.json", num_pictures=2, num_samples=3)
    evaluate(flags)
    report, folder = json.loads((tmp_path / "it.json").read_text()), tmp_path / "it.meshes"
    assert report["environment"]["python"] and len(report["gallery"]) == 4 or kind == "cvq"
    if kind == "cvq":
        worst = sorted((entry for entry in report["gallery"] if "worst" in entry), key=lambda entry: entry["worst"])
        assert [entry["id"] for entry in worst] == [
            o["id"] for o in sorted(report["objects"], key=lambda o: o["iou_volume"])[:2]
        ]
        assert [entry["id"] for entry in report["gallery"]][:2] == [
            report["objects"][0]["id"],
            report["objects"][-1]["id"],
        ], "spread evenly"
    for entry in report["gallery"]:
        assert (entry["status"] == "ok") == (entry["mesh"] is not None)
        if entry["mesh"]:
            assert len(trimesh.load(folder / entry["mesh"], force="mesh").faces)
        if kind == "cvq":
            (row,) = [
                row
                for row in reading.read_rows(dataset_with_views, ["id", "caption", "license", "eval_surface"])
                if row["id"] == entry["id"]
            ]
            assert np.array_equal(
                decode_cloud((folder / entry["cloud"]).read_bytes()), row["eval_surface"].astype(np.float32)
            )
            (scored,) = [scored for scored in report["objects"] if scored["id"] == entry["id"]]
            assert (entry["iou_volume"], entry["caption"], entry["license"]) == (
                scored["iou_volume"],
                row["caption"],
                row["license"],
            )
        elif "object" in entry:
            assert entry["id"] == f"sample-s{report['objects'][entry['object']]['seed']}"
        else:
            scored = report["image_objects"][entry["image_object"]]
            assert entry["id"] == scored["pictured"]
            with Image.open(folder / entry["view"]) as view:
                assert view.getpixel((5, 5))[0] == 100 + FAMILIES.index(scored["family"]), (
                    "the first view of that very object"
                )
    listed = {name for entry in report["gallery"] for name in (entry["cloud"], entry["mesh"], entry["view"]) if name}
    assert {file.name for file in folder.iterdir()} == listed and listed
    (folder / sorted(listed)[0]).unlink()
    evaluate(flags)
    assert {file.name for file in folder.iterdir()} == listed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "missing"}, "neither a finished run"),
        ({"data": "missing"}, "no dataset at"),
        ({"split": "val"}, "no object in split 'val'"),
    ],
)
def test_bad_input_is_one_line(
    dataset: Path, exports: dict[str, Path], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    values = {"model": exports["cvq"], "data": dataset} | {
        k: tmp_path / v if k != "split" else v for k, v in changes.items()
    }
    with pytest.raises(UsageError, match=message) as caught:
        evaluate(_flags(output=tmp_path / "x.json", **values))
    assert "\n" not in str(caught.value) and not (tmp_path / "x.json").exists()


def test_an_unfinished_run_is_refused(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "cvq-nano-s0-00000000"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="not finished"):
        evaluate(_flags(dataset, run, tmp_path / "x.json"))


def test_flags_are_checked_and_a_dry_run_needs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--split"):
        _flags(tmp_path, tmp_path, tmp_path / "x.json", split="all")
    with pytest.raises(ValueError, match="json"):
        _flags(tmp_path, tmp_path, tmp_path / "x.txt")
    assert evaluate(_flags(tmp_path / "no", tmp_path / "none", tmp_path / "x.json", dry_run=True)) is None
    assert "would evaluate" in capsys.readouterr().out and not list(tmp_path.iterdir())
