"""What the pages say is true of the code: commands parse and their dry runs pass, flags, links, modules
and messages exist.
"""

import ast
import dataclasses
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

import g3pt
from docs.make import overview, reference
from g3pt.config import CARConfig, CVQConfig, TrainConfig
from pipelines.cli import defaults, main
from tests import pages
from tests.test_layering import PIPELINES

REPOSITORY = pages.REPOSITORY
README = REPOSITORY / "README.md"
LANGUAGES = {"sh", "bash", "text", "python", "toml"}  # bash: to be typed on a cluster, which no test has
PROGRAMS = re.compile(r"(python|ray|make|source|export|\.venv/bin/mlflow) ")
GIVEN = {
    "prompts.jsonl": b'{"text": "a chair"}\n',
    "Cap3D.csv": b"0001,a chair\n",
    "chair.png": (REPOSITORY / "docs" / "images" / "samples.png").read_bytes(),
    "mug.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n",
}  # files of the reader's own that a command names
ELSEWHERE = {
    "--working-dir", "--address", "--backend-store-uri", "--generate", "--head", "--constraint", "--editable",
    "--index-url",
    "--force-reinstall", "--no-cache-dir", "--check", "--target", "--namespace", "--create-namespace", "--version",
    "--from-literal", "--template",
    "--batch", "--signal", "--cpus-per-task", "--nodes", "--gpus-per-node", "--time", "--partition", "--account",
    "--bind", "--nv",
}  # fmt: skip # flags of ray, pip, ruff, mlflow, docker, helm, kubectl and Slurm
OWN_PARSERS = (
    "pipelines.tracking.moved_store", "pipelines.release.mixed_folder", "g3pt.data.inspection", "g3pt.scaling",
    "pytest",
)  # fmt: skip
PATHS = re.compile(r"`((?:g3pt|pipelines|jobs|benchmarks|tests|docs|weights|deploy)/[\w./-]*)")
MODULES = re.compile(r"`(?:python -m )?((?:g3pt|pipelines)(?:\.\w+)+)`")
NO_MODULES = ("g3pt.toml", "g3pt.alarm")  # a file, a tag
OUTSIDE = "## Ray, MLflow and the browser"  # messages below it are other programs'


@cache
def loaded(program: str) -> reference.Command:
    return reference.load(program)


def is_ours(command: pages.Command) -> bool:
    return command.program.startswith("jobs/") or command.program.removeprefix("-m ") in reference.MODULES


def source_of(command: pages.Command) -> str:
    """The source of a program that parses its own flags; of a benchmark also the files beside it, which share flags."""
    if command.program.startswith("-m "):
        module = REPOSITORY / command.program.removeprefix("-m ").replace(".", "/")
        return (module / "__main__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
    return "\n".join(path.read_text() for path in sorted((REPOSITORY / command.program).parent.glob("*.py")))


def test_each_page_can_be_reached_from_readme() -> None:
    reached, queue = set(), [README]
    while queue:
        page = queue.pop().resolve()
        if page.suffix == ".md" and page not in reached and page.is_file():
            reached.add(page)
            queue += [page.parent / link.partition("#")[0] for link in pages.links(page) if "://" not in link]
    assert [pages.name(page) for page in pages.pages() if page not in reached] == []
    assert len(pages.pages()) > 20


@pytest.mark.parametrize("page", pages.pages(), ids=pages.name)
def test_links_pictures_and_anchors_resolve(page: Path) -> None:
    wrong = []
    for link in pages.links(page):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in pages.anchors(file)):
            wrong.append(link)
    assert wrong == []


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180 and len(text.encode()) <= 14_000


@pytest.mark.parametrize("page", pages.pages(), ids=pages.name)
def test_blocks_say_their_language(page: Path) -> None:
    assert [block.line for block in pages.blocks(page) if block.language not in LANGUAGES] == []
    assert [
        line for line in pages.prose(page).splitlines() if line.startswith("    ") and PROGRAMS.match(line.strip())
    ] == []


def test_lines_to_type_begin_with_a_known_program() -> None:
    lines = pages.shell_lines()
    assert len(lines) > 40 and [line for line in lines if not PROGRAMS.match(line)] == []


def test_every_job_is_shown() -> None:
    shown = {command.program for command in pages.commands()} | {"jobs/quickstart.py"}  # which make demo runs
    assert set(reference.programs()) - shown == set()


@pytest.mark.parametrize(
    "command",
    [c for c in pages.commands() if is_ours(c)],
    ids=lambda command: f"{command.program} {' '.join(command.args)}"[:80],
)
def test_a_command_is_understood(
    command: pages.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its flags exist and, where it has a dry run, that succeeds, prints something and writes nothing."""
    ours = loaded(command.program)
    monkeypatch.chdir(tmp_path)
    given = [file for file in GIVEN if any(Path(arg).name == file for arg in command.args)]
    for file in given:
        (tmp_path / file).write_bytes(GIVEN[file])
    args = [Path(arg).name if Path(arg).name in given else arg for arg in command.args if arg != defaults.SAVE_CONFIG]
    args = defaults.complete(ours.flags, Path(command.program).stem, args, ours.defaults).words
    has_dry_run = "dry_run" in ours.flags.__dataclass_fields__
    more = ["--dry-run"] if has_dry_run and "--dry-run" not in args else []
    flags = main.parse(ours.flags, example="", args=[*args, *more])
    if has_dry_run and command.program not in ("-m pipelines.release", "jobs/tidy.py"):  # they read what there is
        assert ours.run(flags) is None
        assert capsys.readouterr().out.strip()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(given), "a dry run writes nothing"


def test_other_programs_exist_and_know_their_flags() -> None:
    others = [command for command in pages.commands() if not is_ours(command)]
    assert {command.program.removeprefix("-m ") for command in others} >= {
        "g3pt.data.inspection",
        "benchmarks/tokenizer.py",
    }
    for command in others:
        module = command.program.removeprefix("-m ")
        assert module in OWN_PARSERS or (REPOSITORY / command.program).is_file(), command.line
        flags = [arg for arg in command.args if arg.startswith("--")] if module != "pytest" else []
        assert [flag for flag in flags if f'"{flag}"' not in source_of(command)] == [], command.line


@cache
def known_flags() -> set[str]:
    """Every flag of every command, and of the programs that parse their own."""
    ours = {
        f"--{name.replace('_', '-')}"
        for program in reference.programs()
        for name in loaded(program).flags.__dataclass_fields__
    }
    files = [
        *(REPOSITORY / "benchmarks").glob("*.py"),
        REPOSITORY / "pipelines/release/mixed_folder.py",
        REPOSITORY / "g3pt/data/inspection.py",
        REPOSITORY / "g3pt/scaling/__main__.py",
        REPOSITORY / "tests/cpu_seconds.py",
    ]
    own = {flag for file in files for flag in re.findall(r'"(--[a-z][a-z-]*)"', file.read_text())}
    return ours | own | {"--help", defaults.SAVE_CONFIG}


@pytest.mark.parametrize("page", pages.pages(), ids=pages.name)
def test_flags_it_names_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
    assert named - known_flags() - ELSEWHERE == set()


def test_fields_that_set_changes_exist() -> None:
    """Names in `--set name=value,...`; `name=value` itself is how a page says what to give."""
    known = {field.name for config in (CVQConfig, CARConfig, TrainConfig) for field in dataclasses.fields(config)} | {
        "name"
    }
    given = [text for page in pages.pages() for text in re.findall(r"--set ([a-z_]+=[^ `]+)", page.read_text())]
    named = {part.partition("=")[0] for text in given for part in text.split(",") if "=" in part}
    assert "drop_phrases" in named and named - known == set()


@pytest.mark.parametrize("page", pages.pages(), ids=pages.name)
def test_files_and_modules_it_names_exist(page: Path) -> None:
    text = pages.prose(page)
    assert [path for path in PATHS.findall(text) if not (REPOSITORY / path).exists()] == []
    for module in set(MODULES.findall(text)) - set(NO_MODULES):
        base, _, attribute = module.rpartition(".")
        found = (REPOSITORY / base.replace(".", "/") / f"{attribute}.py").is_file() or (
            REPOSITORY / module.replace(".", "/")
        ).is_dir()
        assert found or hasattr(importlib.import_module(base), attribute), module


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = {
        target
        for page in pages.pages()
        for target in re.findall(r"(?:^ *|`)make (\w+)", page.read_text(), re.MULTILINE)
    }
    assert {"demo", "test", "fast", "docs", "lint"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    phony = re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split()
    assert sorted(phony) == sorted(re.findall(r"^(\w+):", makefile, re.MULTILINE)), (
        "a folder docs/ must not stand for its target"
    )


def test_names_that_python_blocks_import_exist() -> None:
    imported = 0
    for block in (block for page in pages.pages() for block in pages.blocks(page) if block.language == "python"):
        for node in ast.walk(ast.parse("\n".join(block.lines))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), f"{block.page}:{block.line}"
                imported += 1
    assert imported >= 5


def test_the_api_page_names_what_exists() -> None:
    """The table has the public names, all of them, and each can be imported."""
    rows = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(g3pt.__all__) and all(hasattr(g3pt, name) for name in rows)


def test_paper_to_code_names_what_exists() -> None:
    text = (REPOSITORY / "docs/reference/paper-to-code.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)(?: \(method `(\w+)`\))?", text)
    assert len(named) >= 7
    for file, classes, method in named:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        found = [getattr(module, name) for name in re.findall(r"`(\w+)`", classes)]
        assert not method or hasattr(found[-1], method), f"{file}: {method}"


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code with its formatted parts as `\\0`."""
    return tuple(
        text
        for package in ("g3pt", "pipelines")
        for file in sorted((REPOSITORY / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if (text := as_text(node))
    )


def as_text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " ".join(node.value.split())
    if isinstance(node, ast.JoinedStr):
        return " ".join(
            "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values).split()
        )
    return ""


def quoted() -> list[str]:
    """The messages of the troubleshooting page, without other programs'."""
    text = (REPOSITORY / "docs/help/troubleshooting.md").read_text().partition(OUTSIDE)[0]
    return re.findall(r"^\| `([^`]+)` ", text, re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_a_message_is_one_of_the_code_s(message: str) -> None:
    """All of it but `...`, in this order, in one text of the code; a word by itself is a row's reason."""
    parts = [part.strip() for part in message.removeprefix("warning: ").split("...")]
    if re.fullmatch(r"[a-z-]+", parts[0]) and len(parts) <= 2:
        assert any(
            text == parts[0] or text.startswith(parts[0] + ":") or text.startswith(parts[0]) and len(parts) == 2
            for text in messages()
        )
        return
    pattern = re.compile(".*?".join(re.escape(part) for part in parts if part))
    assert any(pattern.search(text) for text in messages())


def test_failure_blocks_are_of_this_code() -> None:
    found = [
        frame
        for page in pages.pages()
        for block in pages.blocks(page)
        for frame in re.findall(r"((?:g3pt|pipelines)/[\w/]+\.py):\d+ (\w+)", "\n".join(block.lines))
    ]
    assert len(found) >= 2
    for file, function in found:
        assert re.search(rf"def {function}\b", (REPOSITORY / file).read_text()), f"{file}: {function}"


def test_saved_defaults_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table of a g3pt.toml that a page shows has keys that its job knows."""
    monkeypatch.chdir(tmp_path)
    tables = 0
    for block in (block for page in pages.pages() for block in pages.blocks(page) if block.language == "toml"):
        Path(defaults.CONFIG_FILE).write_text("\n".join(block.lines))
        for job in tomllib.loads("\n".join(block.lines)):
            assert defaults.read_table(loaded(f"jobs/{job}.py").flags, job)
            tables += 1
    assert tables >= 1


@pytest.mark.parametrize("page", reference.PAGES)
def test_generated_pages_are_those_of_the_code(page: str) -> None:
    assert (reference.REFERENCE / page).read_text(encoding="utf-8") == reference.PAGES[page](), "run `make docs`"


def test_the_diagram_is_the_one_that_its_script_draws() -> None:
    assert overview.FILE.read_text(encoding="utf-8") == overview.svg(), "run `make docs`"


def test_contributing_names_every_room() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("| folder | duty |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(PIPELINES)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"\n## [{version}]\n" in (REPOSITORY / "CHANGELOG.md").read_text()
