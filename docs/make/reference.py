"""Reference pages that are made from the code: `python docs/make/reference.py` writes docs/reference/cli.md and
presets.md.

How: each command is loaded as if it were started, with `pipelines.cli.main.main` replaced by a function that keeps the
flag class and the example, from which the help page is drawn. tests/test_docs.py compares the files with what this
program would write.
"""

import dataclasses
import importlib
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
REFERENCE = REPOSITORY / "docs" / "reference"
COLUMNS = 100  # of a help page
MODULES = (
    "pipelines.report",
    "pipelines.status.relog",
    "pipelines.generate.sample_sheet",
    "pipelines.release",
    "pipelines.release.pictures",
    "pipelines.study.publish",
    "pipelines.train.export",
    "pipelines.train.presets",
)
CLI_HEAD = """# Commands

Generated from the commands' help pages by `python docs/make/reference.py`.

Every command takes `--help`. A flag's default is in brackets. [Contracts](../concepts/contracts.md#commands) lists what all commands have in common.
A job that is started without flags does its smallest useful work on embedded defaults and says so in its first line. `g3pt.toml` in the working directory replaces the defaults ([FAQ](../help/faq.md)).
"""
CLI_TAIL = """## Others

| command | does |
|---|---|
| `python -m pipelines.tracking.moved_store PATH/mlflow.db` | repairs the places of artifacts after a folder was moved |
| `python -m pipelines.release.mixed_folder --meshes FOLDER --shapes N --output FOLDER` | puts real meshes and procedural shapes into one folder with a manifest |
| `python docs/make/reference.py` | writes this page and the presets |
"""
PRESETS_HEAD = """# Presets

Generated from the code by `python docs/make/reference.py`. `--preset` takes a name of these tables; `--set name=value,...` changes single fields.

`paper` follows the numbers known of the paper. How its 2408 tokens are divided into scales, and all other presets, are ours. `large` has the size of `paper` with what won at `nano`: anchored latents with their blur, FSQ, and points on sharp edges. What that leaves [unmeasured](../results/tokenizer.md#what-is-still-unmeasured).

## Tokenizers (CVQ)

"""
CAR_HEAD = """
`python jobs/train_cvq.py --data D --output R --preset paper --dry-run` prints more about one preset, and needs no data. Only `nano` has been trained.

## Generators (CAR)

Sizes with the tokenizer `paper`, 2408 tokens. Presets from 0.1B on read CLIP's vector and DINOv2's 257 image tokens, smaller ones 16 image tokens of a small encoder.

- Everything is counted. AdaLN's layers are a third of each block, but work once per object, not once per token.
- Memory includes the frozen tokenizer and encoders (150.6 M, 123 M and 304 M parameters); sampling holds all of it in float32. What a training step adds is [measured](../results/speed.md#memory-of-a-training-step).
- From nano on, each size is 1.5 to 2.9 times the one before, which suits a scaling study.
- Only 5k to nano have been trained. The larger ones are built and counted, and the 1.5B's block is run forward and backward by a test.

"""
CAR_TAIL = """
`python -m pipelines.train.presets --tokenizer small` prints the table for another tokenizer's tokens, and `--memory` adds what a training step holds. `--dry-run` of a training command prints the numbers for a batch, a number of workers and `--parallel fsdp`.
"""


@dataclass(frozen=True)
class Command:
    """What a command hands to `pipelines.cli.main.main`."""

    flags: type
    run: Callable[[Any], Any]
    example: str
    defaults: Any = None


def load(program: str) -> Command:
    """The command that `python jobs/x.py` or `python -m package.module` starts;
    `program` is the part after `python `.
    """
    given: list[Command] = []

    def keep(flags: type, run: Callable[[Any], Any], *, example: str, defaults: Any = None, **_: Any) -> None:
        given.append(Command(flags, run, example, defaults))

    with mock.patch("pipelines.cli.main.main", keep):
        if program.startswith("-m "):
            runpy.run_module(program.removeprefix("-m "), run_name="__main__", alter_sys=True)
            given[0] = _imported(given[0], program.removeprefix("-m "))
        else:
            runpy.run_path(str(REPOSITORY / program), run_name="__main__")
    (command,) = given
    return command


def _imported(command: Command, module: str) -> Command:
    """The command with a flag class of `__main__` replaced by the one that importing the module gives:
    its type hints can be resolved.
    """
    if command.flags.__module__ != "__main__":
        return command
    found = importlib.import_module(module)
    return dataclasses.replace(
        command, flags=getattr(found, command.flags.__name__), run=getattr(found, command.run.__name__)
    )


def programs() -> list[str]:
    """Every documented program, as typed after `python `."""
    jobs = sorted(f"jobs/{path.name}" for path in (REPOSITORY / "jobs").glob("*.py"))
    return jobs + [f"-m {module}" for module in MODULES]


def cli() -> str:
    """docs/reference/cli.md."""
    from g3pt.data.inspection import USAGE
    from pipelines.cli.help import help_text

    parts = [CLI_HEAD]
    for program in programs():
        command = load(program)
        page = help_text(command.flags, command.example, columns=COLUMNS)
        parts.append(f"## {program.removeprefix('-m ')}\n\n```text\n{page}```\n")
    parts.append(f"## g3pt.data.inspection\n\n```text\n{USAGE.rstrip()}\n```\n")
    parts.append(CLI_TAIL)
    return "\n".join(parts)


def tokenizers() -> list[str]:
    """The table of tokenizer presets, counted from the code."""
    from g3pt.config import CVQ_PRESETS
    from pipelines.train.counts import count_cvq

    rows = [
        "| CVQ | tokens | scales | latents x width, heads | encoder / decoder layers | latents, codes, sharp points | parameters | batch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (model, train) in CVQ_PRESETS.items():
        counted = count_cvq(model)
        cells = (
            name,
            f"{counted['tokens']}",
            ", ".join(map(str, model.scales)),
            f"{model.num_latents} x {model.width}, {model.num_heads}",
            f"{model.encoder_layers} / {model.decoder_layers}",
            f"{model.latent_queries}, {model.quantizer.upper()}, {model.num_sharp_points}",
            f"{counted['parameters'] / 1e6:.1f} M",
            f"{train.batch_size}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def presets() -> str:
    """docs/reference/presets.md."""
    from pipelines.train.presets import lines

    return PRESETS_HEAD + "\n".join(tokenizers()) + "\n" + CAR_HEAD + "\n".join(lines("paper")) + "\n" + CAR_TAIL


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "presets.md": presets}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
        print(REFERENCE / name)
