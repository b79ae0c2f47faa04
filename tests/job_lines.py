"""Jobs that manifests and batch scripts start, read by the parsers of the jobs."""

import shlex
from pathlib import PurePosixPath
from typing import Any

from docs.make import reference
from pipelines.cli import main


def rehearsed(line: str) -> None:
    """Runs the job's `--dry-run`, which refuses flags that do not go together."""
    job, flags = parsed(f"{line} --dry-run")
    reference.load(f"jobs/{job}").run(flags)


def parsed(line: str) -> tuple[str, Any]:
    """NAME.py and the flags of `python .../jobs/NAME.py FLAGS`; SystemExit for a flag that the job does not know."""
    python, program, *args = shlex.split(line)
    assert python == "python" and PurePosixPath(program).parent.name == "jobs", line
    job = PurePosixPath(program).name
    return job, main.parse(reference.load(f"jobs/{job}").flags, example="", args=args)
