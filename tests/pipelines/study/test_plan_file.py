"""A study's plan in a file: what it may contain, what is refused, and that it comes back from study.json."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.study.config import DEFAULT_SIZES, SweepFlags
from pipelines.study.plan import plan
from pipelines.study.plan_file import ACTIONS, TABLES, plan_of, with_plan_file

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "study.toml"
PLAN = 'data = "d"\ntokenizer = "t"\noutput = "o"\n'


def flags_of(words: list[str]) -> SweepFlags:
    return main.parse(SweepFlags, example="python jobs/scaling_sweep.py", args=with_plan_file(words))


def test_the_documented_example_is_a_plan() -> None:
    flags = flags_of(["--plan", str(EXAMPLE)])
    assert (flags.sizes, flags.samples, flags.seeds) == ("1x32,2x32,2x48,2x64,3x96", "8k,16k,32k,64k", "0,1")
    assert flags.set == "text_encoder=small,image_encoder=none,beta2=0.99" and flags.flops_per_s == 1e10
    rows = plan(flags)
    assert len(rows) == 5 * 4 * 2 + 1 and {row.train.beta2 for row in rows} == {0.99}
    assert {(row.model.text_encoder, row.model.image_encoder) for row in rows} == {("small", "none")}


def test_every_flag_has_one_table_or_is_an_action() -> None:
    placed = [name for names in TABLES.values() for name in names]
    assert len(placed) == len(set(placed))
    assert {*placed, *ACTIONS, "set"} == {field.name for field in dataclasses.fields(SweepFlags)}


def test_typed_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(PLAN + 'sizes = "1x16"\nseeds = [0, 1]\n[set]\nbeta2 = 0.9\n')
    flags = flags_of(["--seeds=2", f"--plan={tmp_path}/a.toml", "--set", "beta2=0.8", "--output", "mine"])
    assert (flags.sizes, flags.seeds, flags.set, flags.output) == ("1x16", "2", "beta2=0.8", "mine")


def test_a_plan_comes_back_from_study_json(tmp_path: Path) -> None:
    flags = SweepFlags(
        data="/d", tokenizer="/t", output="/o", sizes="1x16,nano", samples="8k,16k", held_out="1x16:32k", seeds="0,3",
        batch_size=8, set="text_encoder=small,beta2=0.9,drop_phrases=0.5", num_workers=0, micro_batch=4,
        gpu_memory=80.0, features="stored", price=2.5, max_failures=1,
    )  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps({"runs": [], "plan": plan_of(flags)}))
    assert flags_of(["--plan", str(tmp_path / "study.json")]) == flags


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size = 3", "no key size; did you mean sizes?"),
        ("[placement]\nworkers = 3", r"\[placement\] workers: no such key; did you mean num_workers?"),
        ("[cost]\nsizes = 'nano'", r"\[cost\] sizes: no such key; "),
        ("placement = 3", r"placement must be a table, \[placement\]"),
        ("steps = '300'", "steps must be a whole number, got '300'"),
        ("steps = true", "steps must be a whole number, got True"),
        ("data = 3", "data must be text, got 3"),
        ("sizes = [1, 2]", "sizes must be a list of which each is text"),
        ("seeds = ['0']", "seeds must be a list of which each is a whole number"),
        ("samples = []", "samples must be a list of which each is a count, such as 8000 or"),
        ("[placement]\nmicro_batch = 'all'", "micro_batch must be a whole number or \"auto\", got 'all'"),
        ("[conditions]\nfeatures = 'kept'", 'features must be "live" or "pictures" or "stored"'),
        ("[conditions]\nbeta2 = 0.9", r"\[conditions\] beta2: no such key; "),
        ("[conditions]\nimage_size = 56\n[set]\nimage_size = 28", r"\[set\] image_size is in two tables: remove one"),
        ("[set]\nbeta2 = {}", r"\[set\] beta2 must be text, a number"),
        ("x = ", "not a TOML file"),
    ],
)
def test_what_is_no_plan_is_refused_with_file_key_and_remedy(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"--plan {file}: .*{said}"):
        with_plan_file(["--plan", str(file)])


def test_a_file_without_a_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match="contains no plan: give a study.toml, or the study.json of a study"):
        with_plan_file(["--plan", str(tmp_path / "study.json")])
    with pytest.raises(ValueError, match="nowhere.toml: No such file"):
        with_plan_file(["--plan", "nowhere.toml"])
    with pytest.raises(ValueError, match="--plan needs a file"):
        with_plan_file(["--plan"])


def test_the_command_reads_it_and_exits_2_for_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[SweepFlags] = []
    (tmp_path / "a.toml").write_text(PLAN + "steps = 7\n")
    (tmp_path / "g3pt.toml").write_text('[scaling_sweep]\nsteps = 3\nsizes = "nano"\n')
    for file, code in (("a.toml", 0), ("b.toml", 2)):
        with pytest.raises(SystemExit) as ended:
            main.main(
                SweepFlags,
                lambda flags: seen.append(flags),
                example="python jobs/scaling_sweep.py",
                args=["--plan", file],
                expand=with_plan_file,
            )
        assert ended.value.code == code
    (tmp_path / "g3pt.toml").write_text('[scaling_sweep]\nplan = "a.toml"\n')
    with pytest.raises(SystemExit):
        main.main(
            SweepFlags,
            lambda flags: seen.append(flags),
            example="python jobs/scaling_sweep.py",
            args=[],
            expand=with_plan_file,
        )
    assert [(flags.steps, flags.sizes, flags.plan) for flags in seen] == [(7, "nano", None), (7, DEFAULT_SIZES, None)]
    assert "error: --plan b.toml: No such file or directory\n" in capsys.readouterr().err
