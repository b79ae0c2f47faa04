"""The dataset's card: exact counts, pictures that do not depend on order, and a report that shows it only
for its own dataset.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g3pt.data import datasets, records
from g3pt.data.summary import FURTHER_NAMES
from pipelines.preprocess import dataset_card
from pipelines.preprocess.dataset_card import CARD, SHEET, Histogram, write_card
from pipelines.report.page import write_report
from tests.pipelines.report_numbers import check_numbers

SMALL = records.RecordConfig(num_surface=64, num_sharp=8, num_queries=8, filled=True)


def row(name: str, /, **values: object) -> dict:
    surface = np.random.default_rng(len(name)).normal(size=(64, 6)).astype(np.float16) / 4
    known = {
        "status": "ok",
        "category": "cup",
        "license": "CC0-1.0",
        "volume": 0.5,
        "num_faces": 12,
        "surface": surface,
    }
    return records.empty_row(name, SMALL) | known | values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(f"cup-{k}", name=f"Cup *{k}*") for k in range(5)] + [
        row("chair", category="chair", license="", volume=5.0, num_faces=40_000, filled_by="winding", filled_share=0.75)
    ]
    rows.append(row("bad", status="rejected", error="zero-extent: <b>flat</b>"))
    shards: dict[int, list[dict]] = {}
    for one in rows:
        shards.setdefault(records.shard_index(one["id"], 2), []).append(one)
    seconds = {one["id"]: 0.5 if one["id"] == "chair" else 0.02 for one in rows}
    sidecars = {
        index: datasets.write_shard(
            tmp_path, index, found, SMALL, num_shards=2, seconds={one["id"]: seconds[one["id"]] for one in found}
        )
        for index, found in shards.items()
    }
    datasets.write_dataset(tmp_path, SMALL, {"toy": 1}, 2, datasets.Tally(sidecars))
    return tmp_path


def test_a_card_counts_everything_and_names_what_is_slow_and_what_failed(folder: Path) -> None:
    made = write_card(folder)
    card = json.loads((folder / CARD).read_text())
    assert card["category"] == {"cup": 5, "chair": 1} and card["license"] == {"CC0-1.0": 5, "not stated": 1}
    assert card["counts"] == {"ok": 6, "rejected": 1}
    assert card["slowest"][0] == {"id": "chair", "seconds": 0.5} and len(card["slowest"]) == 7
    assert card["not_ok"] == [{"id": "bad", "status": "rejected", "error": "zero-extent: <b>flat</b>"}]
    volume, faces = card["histograms"]["volume"], card["histograms"]["num_faces"]
    assert sum(volume["counts"]) == sum(faces["counts"]) == 6 and sum(card["histograms"]["seconds"]["counts"]) == 7
    assert (
        volume["counts"][volume["edges"].index(0.3) + 1] == 5 and volume["counts"][volume["edges"].index(3.0) + 1] == 1
    )
    assert card["filled"] == 1 and card["histograms"]["filled_share"]["counts"] == [0] * 7 + [1, 0, 0]
    assert card["pictured"] == sorted(card["pictured"], key=records.id_hash) and len(card["pictured"]) == 6
    assert made == [folder / CARD, folder / SHEET, folder / "contact_sheet.credits.md"]
    assert "| cup-0 | Cup \\*0\\* | author not stated |" in made[2].read_text(), "an object's name is its title"
    sheet = np.asarray(Image.open(folder / SHEET))
    assert sheet.shape[1] == 6 * dataset_card.TILE and (sheet < 250).mean() > 0.005


def test_only_so_many_objects_are_pictured_those_with_the_smallest_hash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_card, "SHOWN_OBJECTS", 2)
    monkeypatch.setattr(dataset_card, "SHOWN_SLOWEST", 1)
    write_card(folder)
    card = json.loads((folder / CARD).read_text())
    names = [f"cup-{k}" for k in range(5)] + ["chair"]
    assert card["pictured"] == sorted(names, key=records.id_hash)[:2] and [item["id"] for item in card["slowest"]] == [
        "chair"
    ]


def test_a_category_an_object_does_not_fill_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.data.summary.MOST_NAMES", 1)
    write_card(folder)
    card = json.loads((folder / CARD).read_text())
    assert (
        sum(card["category"].values()) == 6 and FURTHER_NAMES in card["category"] and card["num_names"]["category"] == 2
    )


def test_the_page_shows_the_card_of_this_very_dataset_with_its_text_escaped(folder: Path) -> None:
    write_card(folder)
    page = write_report(folder).read_text()
    assert "whose open surface encloses air, which was filled: <" in page
    assert "Thickness of the solid" in page and "zero-extent: &lt;b&gt;flat&lt;/b&gt;" in page and "<b>flat" not in page
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"fingerprint": "of before"}))
    assert "Thickness of the solid" not in write_report(folder).read_text()


def test_the_page_counts_no_shard_again_whose_dataset_has_a_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_card, "SHOWN_NAMES", 1)
    write_card(folder)
    sidecar = folder / f"{records.shard_name(records.shard_index('chair', 2))}.json"
    sidecar.write_text(sidecar.read_text().replace("0.5", "77.5"))
    page = write_report(folder).read_text()
    check_numbers(page, folder)
    assert (
        "Categories of ok objects; 1 more" in page and "Objects that are not ok: 1 of 1" in page and "77.5" not in page
    )
    assert (
        'card.json#/category/cup" data-value="5"' in page and 'card.json#/slowest/0/seconds" data-value="0.5"' in page
    )
    (folder / CARD).unlink()
    page = write_report(folder).read_text()
    assert "Categories of ok objects<" in page and "77.50" in page


def test_a_value_on_an_edge_counts_above_it() -> None:
    histogram = Histogram([1.0, 3.0])
    for value in (0.5, 1.0, 2.9, 3.0, 9.0):
        histogram.add(value)
    assert histogram.counts == [1, 2, 2]


def test_nearer_points_hide_those_behind_them() -> None:
    front, behind = [0, 0, 0.5, 0, 0, 1], [0, 0, -0.5, 0, 0, 0.2]
    image = np.asarray(dataset_card.cloud_picture(np.array([front, behind], dtype=np.float32), 0.0, 0.0))
    assert image[dataset_card.TILE // 2, dataset_card.TILE // 2, 0] == 220
