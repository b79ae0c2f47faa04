"""Releases: equal codes, a card from the run's files, refusals by licence, credits beside pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import export_hash, write_json
from pipelines.cli.errors import UsageError
from pipelines.evaluate.gallery import folder_of, write_gallery
from pipelines.preprocess import credits
from pipelines.release import job, pictures
from pipelines.release.job import ReleaseFlags
from pipelines.runs.ledger import Ledger
from tests.g3pt.tiny import tiny_tokenizer

ROWS = [
    {"id": "kit/chair", "license": "CC0-1.0", "author": "Kay", "url": "https://example.org/kit"},
    {
        "id": "scan/vase",
        "license": "CC-BY-4.0",
        "author": "Eve <script> | [x](javascript:1)",
        "url": "javascript:alert(1)",
    },
    {
        "id": "scan/cup",
        "license": "CC-BY-4.0",
        "author": "Eve <script> | [x](javascript:1)",
        "url": "https://example.org/cup",
    },
]


def finished_run(folder: Path, rows: list[dict[str, str]], **changes: object) -> Path:
    """The folder of a finished run with random weights."""
    run = folder / "cvq-tiny-s0-12345678"
    tiny_tokenizer(**changes).save_pretrained(run / "export", extra={"trained_on": rows, "run": {}})
    train = {"steps": 50, "batch_size": 4, "precision": "fp32"}
    write_json(
        run / "config.json",
        {
            "name": run.name,
            "seed": 0,
            "paths": {"data": "/data/real"},
            "config": {"train": train, "dataset": "f" * 64, "exclude_ids": ["market*"]},
        },
    )
    Ledger(run / "metrics.jsonl").append(
        [
            {"step": 100.0, "samples_per_second": 50.0},
            {
                "step": 200.0,
                "samples_per_second": 25.0,
                "test_iou": 0.75,
                "test_iou_scale_1": 0.5,
                "test_iou_scale_2": 0.75,
            },
        ]
    )
    write_json(run / "command.json", {"environment": {"cores": 2, "cpu": "A CPU", "gpus": [], "git_commit": "abc123"}})
    (run / "_SUCCESS").touch()
    return run


def test_a_release_loads_as_the_run_and_tells_what_it_is(tmp_path: Path) -> None:
    run, output = finished_run(tmp_path, ROWS), tmp_path / "g3pt-tiny-cvq"
    assert job.release(ReleaseFlags(run=str(run), output=str(output))) == str(output)
    assert sorted(file.name for file in output.iterdir()) == [
        "CREDITS.md",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    surface_BP6 = torch.randn(3, 64, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CVQ.from_pretrained(output).encode(surface_BP6), CVQ.from_pretrained(run).encode(surface_BP6))
    card = (output / "README.md").read_text()
    for told in (
        "license: apache-2.0",
        "# g3pt-tiny-cvq",
        "| CC-BY-4.0 | 2 |",
        "| CC0-1.0 | 1 |",
        "Excluded by id: market\\*.",
        "50 steps of 4 objects (200 samples)",
        "6 s without",
        "abc123",
        "| iou | 0.75 |",
        "| | scale 1 | scale 2 |",
        "| iou | 0.5 | 0.75 |",
    ):
        assert told in card, told
    thanks = card.partition("With thanks")[2]
    assert "2 objects (<https://example.org/cup>, javascript:alert\\(1\\))" in thanks and "Kay" not in thanks
    assert "<script>" not in card and "](javascript" not in card
    assert "Kay: 1 object (<https://example.org/kit>)" in (output / "CREDITS.md").read_text()
    with pytest.raises(UsageError, match="exists already"):
        job.release(ReleaseFlags(run=str(run), output=str(output)))


def test_the_hub_s_own_reader_understands_the_card(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    job.release(ReleaseFlags(run=str(finished_run(tmp_path, ROWS)), output=str(tmp_path / "out")))
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (data["license"], data["datasets"], data["library_name"]) == (
        "apache-2.0",
        ["real"],
        "g3pt",
    ) and "3d" in data["tags"]


def test_fp16_halves_the_file_and_loads(tmp_path: Path) -> None:
    run, whole, half = finished_run(tmp_path, ROWS, width=64), tmp_path / "whole", tmp_path / "half"
    job.release(ReleaseFlags(run=str(run), output=str(whole)))
    job.release(ReleaseFlags(run=str(run), output=str(half), precision="fp16"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    pairs = zip(
        CVQ.from_pretrained(half).state_dict().values(), CVQ.from_pretrained(whole).state_dict().values(), strict=True
    )
    assert all(a.dtype == b.dtype and torch.allclose(a.float(), b.float(), atol=2e-3, rtol=1e-3) for a, b in pairs)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"id": "kit/x", "license": "CC-BY-NC-4.0"},
            r"1 of 4 training objects are not cleared \(licence CC-BY-NC-4.0: 1, such as kit/x\)",
        ),
        ({"id": "kit/x", "license": "CC-BY-SA-4.0"}, "licence CC-BY-SA-4.0: 1"),
        ({"id": "kit/x", "license": ""}, "licence none: 1"),
        ({"id": "market_van__van", "license": "CC0-1.0"}, r"id matches market\*: 1, such as market_van__van"),
        ({"id": "trimesh_models__x", "license": "MIT"}, r"trimesh\*"),
        ({"id": "odedstein__x", "license": "MIT"}, r"odedstein\*"),
        ({"id": "classic__teapot", "license": "MIT"}, r"classic\*"),
    ],
)
def test_an_object_that_is_not_cleared_refuses_the_release(row: dict[str, str], says: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path, [*ROWS, row | {"author": "", "url": ""}])
    with pytest.raises(UsageError, match=says):
        job.release(ReleaseFlags(run=str(run), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_what_a_tokenizer_was_trained_on_binds_its_generator(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    config = json.loads((run / "export" / "config.json").read_text())
    write_json(
        run / "export" / "config.json",
        config | {"tokenizer_trained_on": [{"id": "classic/x", "license": "MIT", "author": "", "url": ""}]},
    )
    with pytest.raises(UsageError, match=r"1 of 4 .*classic\*"):
        job.release(ReleaseFlags(run=str(run), output=str(tmp_path / "out")))
    write_json(run / "export" / "config.json", config | {"trained_on": []})
    with pytest.raises(UsageError, match="lists no training objects"):
        job.release(ReleaseFlags(run=str(run), output=str(tmp_path / "out")))


def test_an_evaluation_of_other_weights_is_refused_and_its_own_is_told(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    found = {
        "model": {"export_sha256": "0" * 64}, "dataset": {"split": "test"},
        "protocol": {"box": "[-1, 1]^3", "scales": [1, 3]},
        "metrics": {"num_objects": 9, "iou_volume": 0.81234, "iou_volume_interval_95": [0.8, 0.82], "chamfer": None,
                    "iou_first_1_scales": 0.5},
    }  # fmt: skip
    write_json(tmp_path / "e.json", found)
    flags = ReleaseFlags(run=str(run), output=str(tmp_path / "out"), evaluation=str(tmp_path / "e.json"))
    with pytest.raises(UsageError, match="is an evaluation of other weights"):
        job.release(flags)
    write_json(tmp_path / "e.json", found | {"model": {"export_sha256": export_hash(run)}})
    job.release(flags)
    card = (tmp_path / "out" / "README.md").read_text()
    for told in (
        "Split test, 9 objects.",
        "| volume IoU | 0.8123 | 0.8000 to 0.8200 |",
        "| IoU, first 1 scales | 0.5000 |",
        "- box: \\[-1, 1\\]^3",
    ):
        assert told in card, told


def test_the_best_weights_are_released_as_such(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    flags = ReleaseFlags(run=str(run), output=str(tmp_path / "out"), weights="best")
    with pytest.raises(UsageError, match="has no best weights: no record of its last phase has a validation loss"):
        job.release(flags)
    best = tiny_tokenizer(width=32)
    about = {"trained_on": ROWS, "run": {}, "best": {"samples": 1200, "validation_loss": 0.123456}}
    best.save_pretrained(run / "export-best", extra=about)
    job.release(flags)
    card = (tmp_path / "out" / "README.md").read_text()
    assert CVQ.from_pretrained(tmp_path / "out").config.width == 32 and "width 32" in card
    assert "Weights in fp32: those with the lowest validation loss, 0.1235, after 1,200 samples." in card
    assert "Not evaluated. The run's own test metrics are those of its last weights." in card and "0.75" not in card
    job.release(ReleaseFlags(run=str(run), output=str(tmp_path / "last")))
    last = (tmp_path / "last" / "README.md").read_text()
    assert CVQ.from_pretrained(tmp_path / "last").config.width == 16 and "lowest validation loss" not in last


def test_too_large_a_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "MAX_BYTES", 10_000)
    with pytest.raises(UsageError, match=r"MB, more than 0; try --precision fp16"):
        job.release(ReleaseFlags(run=str(finished_run(tmp_path, ROWS)), output=str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["cvq-tiny-s0-12345678"]


# ------------------------------------------------------------------------------------------------------------- pictures


def evaluation(folder: Path, ids: list[str]) -> Path:
    """A tokenizer's evaluation with a gallery of tetrahedra."""
    file = folder / "cvq.json"
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    cloud = np.concatenate(
        [np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)), np.tile([0.0, 1.0, 0.0], (500, 1))], axis=1
    )
    items = [
        {"id": name, "caption": f"a {name} | x", "license": "CC-BY-4.0", "author": "A_B",
         "attribution_url": f"https://example.org/{k}", "source_url": "",
         "iou_volume": 0.8, "iou_near": 0.7, "status": "ok", "spread": True, "cloud": cloud, "mesh": (corners, faces)}
        for k, name in enumerate(ids)
    ]  # fmt: skip
    write_json(
        file,
        {"kind": "cvq", "dataset": {"path": str(folder / "data")}, "gallery": write_gallery(items, folder_of(file))},
    )
    return file


def test_a_picture_has_its_credits_beside_it(tmp_path: Path) -> None:
    from PIL import Image

    file = evaluation(tmp_path, ["kit__a", "market_x__b", "kit__c", "kit__d"])
    output = Path(
        pictures.pictures(
            pictures.PicturesFlags(evaluation=str(file), output=str(tmp_path / "docs" / "shown.png"), num=3)
        )
    )
    with Image.open(output) as image:
        assert image.size == (3 * 2 * pictures.CELL + 20, pictures.CELL + pictures.TEXT)
        shades = [
            set(
                np.asarray(image.convert("L"))[: pictures.CELL, k * pictures.CELL : (k + 1) * pictures.CELL]
                .ravel()
                .tolist()
            )
            for k in range(2)
        ]
        assert min(map(len, shades)) > 3, "input and reconstruction are drawn"
    lines = credits.credits_file(output).read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| ") and "example" in line] == [
        "kit\\_\\_a",
        "kit\\_\\_c",
        "kit\\_\\_d",
    ]
    assert (
        "| 1 | kit\\_\\_a | a kit\\_\\_a \\| x | A\\_B | [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/) | "
        "<https://example.org/0> |" in lines
    )


def test_a_contact_sheet_s_credits_are_of_its_objects_in_its_order() -> None:
    from pipelines.evaluate.job import shown_in

    gallery = [{"id": "a", "spread": True, "worst": 2}, {"id": "b", "spread": True}, {"id": "c", "worst": 1}]
    assert [entry["id"] for entry in shown_in(Path("x/cvq.png"), gallery)] == ["a", "b"]
    assert [entry["id"] for entry in shown_in(Path("x/cvq.worst.png"), gallery)] == ["c", "a"]


def test_more_objects_than_there_are_is_one_line(tmp_path: Path) -> None:
    file = evaluation(tmp_path, ["kit__a", "market_x__b"])
    with pytest.raises(ValueError, match="1 objects with confirmed licences, fewer than --num 2"):
        pictures.chosen([*json.loads(file.read_text())["gallery"], {"id": "kit__worst", "worst": 1}], 2, file)
    (tmp_path / "x.json").write_text("[]")
    for name, says in (("x.json", "not an evaluation"), ("y.json", "no such")):
        with pytest.raises(ValueError, match=says):
            pictures.read_evaluation(tmp_path / name)
