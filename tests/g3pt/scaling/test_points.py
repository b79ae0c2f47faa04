"""Tables of points: what is read, what is refused by file, line and column, what is imported."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from g3pt.scaling.points import import_rows, read_points, read_rows, write_parquet, write_rows

ROWS = (
    "size,params_no_embed,params_total,flops,seed,samples,test_ce,test_ce_scale_1\ns,1000,1200,6e6,0,100,8.5,3.1\n"
    "s,1000,1200,,1,200,8.25,3.0\n"
)


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(ROWS)
    points = read_points(tmp_path / "p.csv")
    assert points.params.tolist() == [1000, 1000] and points.samples.tolist() == [100, 200]
    assert points.size == ("s", "s") and points.seed == ("0", "1") and points.count == "params_no_embed"
    assert points.flops[0] == 6e6 and np.isnan(points.flops[1])
    other = read_points(tmp_path / "p.csv", count="params_total", column="test_ce_scale_1")
    assert other.params.tolist() == [1200, 1200] and other.loss.tolist() == [3.1, 3.0] and other.sha256 != points.sha256
    (tmp_path / "p.csv").write_text(ROWS.replace("8.25", "8.26"))
    assert read_points(tmp_path / "p.csv").sha256 != points.sha256


def test_a_parquet_table_has_the_rows_of_the_csv_and_each_object_s_loss(tmp_path: Path) -> None:
    """A run that was made before objects were kept has none."""
    rows = [
        {
            "size": "s",
            "params_no_embed": 1000,
            "flops": 6e6,
            "seed": k,
            "samples": 100,
            "test_ce": 8.1 + k / 3,
            "parent": "",
        }
        for k in range(2)
    ]
    objects = {"id": ["a", "b"], "ce": [8.0, 8.2], "ce_scale_1": [3.0, 3.5]}
    write_rows(rows, tmp_path / "p.csv")
    write_parquet(rows, [objects, None], tmp_path / "p.parquet")
    assert read_rows(tmp_path / "p.parquet") == read_rows(tmp_path / "p.csv")
    assert read_points(tmp_path / "p.parquet").sha256 == read_points(tmp_path / "p.csv").sha256
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["objects_id"] == [["a", "b"], None] and table["objects_ce_scale_1"] == [[3.0, 3.5], None]
    assert table["objects_ce"][0] == pytest.approx([8.0, 8.2])
    write_parquet(rows, [None, None], tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").to_pydict()["objects_id"] == [None, None]
    (tmp_path / "p.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"p.parquet is not a readable Parquet file"):
        read_points(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROWS.replace("8.25", "nan"), r"p.csv line 3: test_ce must be a positive number, got 'nan'"),
        (ROWS.replace(",100,", ",-100,"), r"p.csv line 2: samples must be a positive number, got '-100'"),
        (ROWS.replace("1000", "many"), r"p.csv line 2: params_no_embed must be a positive number, got 'many'"),
        (ROWS.replace("test_ce,", "loss,"), r"p.csv has no column 'test_ce'; it has "),
        (ROWS.splitlines()[0] + "\n", r"p.csv has no points"),
        (ROWS + "s,1\n", r"p.csv line 4 has another number of values than the header"),
        (ROWS + 's,"1\n', r"p.csv is not a readable CSV file"),
    ],
)
def test_what_is_no_table_of_points_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_points(tmp_path / "p.csv")


def test_a_table_of_others_is_imported_by_named_columns(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("N,D,val\n10,20,3.5\n20,20,3.25\n")
    columns = {"params_total": "N", "samples": "D", "test_ce": "val"}
    write_rows(import_rows(tmp_path / "theirs.csv", columns), tmp_path / "ours.csv")
    points = read_points(tmp_path / "ours.csv")
    assert points.params.tolist() == [10, 20] and points.loss.tolist() == [3.5, 3.25] and points.size == ("10", "20")
    with pytest.raises(ValueError, match="is of no known table"):
        import_rows(tmp_path / "theirs.csv")
    with pytest.raises(ValueError, match="has no column 'loss'; it has N, D, val"):
        import_rows(tmp_path / "theirs.csv", columns | {"test_ce": "loss"})
    with pytest.raises(ValueError, match="an import needs test_ce, one of"):
        import_rows(tmp_path / "theirs.csv", {"samples": "D", "test_ce": "val"})


def test_epoch_s_table_is_known() -> None:
    rows = import_rows(Path(__file__).parent / "chinchilla_figure4_points.csv")
    assert len(rows) == 245
    assert float(rows[0]["samples"]) == pytest.approx(float(rows[0]["flops"]) / 6 / float(rows[0]["params_total"]))
