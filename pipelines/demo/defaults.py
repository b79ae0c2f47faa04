"""What each command does without flags: its smallest useful work, on procedural shapes and the released weights.

Paths below `out/` are relative to the working directory, as those that a user types.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pipelines.cli.defaults import Defaults
from pipelines.cli.main import absolute

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPES = "out/shapes"
TOKENIZER = str(REPOSITORY / "weights" / "g3pt-nano-cvq")
PROMPTS = str(REPOSITORY / "docs" / "prompts.jsonl")


def make_shapes(flags: Any) -> None:
    """Make the dataset `flags.data` as jobs/preprocess.py does without flags, unless there is one."""
    from pipelines.preprocess.config import PreprocessConfig
    from pipelines.preprocess.job import preprocess
    from pipelines.report.page import write_report

    if not (Path(flags.data) / "dataset.json").exists():
        config = PreprocessConfig(**PREPROCESS.flags)
        preprocess(dataclasses.replace(config, output=absolute(flags.data)), page=write_report)


PREPROCESS = Defaults(
    flags={"source": "shapes", "limit": 300, "resolution": 64, "output": SHAPES},
    says=f"300 procedural shapes at 64 cells become {SHAPES}",
)
TRAIN_CVQ = Defaults(
    flags={"data": SHAPES, "output": "out/runs"},
    says=f"a tokenizer of preset nano is trained on {SHAPES}",
    prepare=make_shapes,
)
TRAIN_CAR = Defaults(
    flags={"data": SHAPES, "tokenizer": TOKENIZER, "output": "out/runs"},
    says=f"a generator of preset nano is trained on {SHAPES}, with the released tokenizer",
    prepare=make_shapes,
)
SCALING_SWEEP = Defaults(
    flags={
        "data": SHAPES,
        "tokenizer": TOKENIZER,
        "output": "out/study",
        "sizes": "5k,20k,80k,150k",
        "steps": 300,
        "num_workers": 0,
    },
    says=f"generators of four sizes are trained for 300 steps on {SHAPES}, with the released tokenizer",
    prepare=make_shapes,
)
GENERATE = Defaults(
    flags={"prompts": PROMPTS, "resolution": 64, "output": "out/meshes"},
    says="the prompts of docs/prompts.jsonl become meshes in out/meshes, by the released generator",
)
EVALUATE = Defaults(
    flags={"model": TOKENIZER, "data": SHAPES, "output": "out/g3pt-nano-cvq.json"},
    says=f"the released tokenizer is evaluated on {SHAPES}",
    prepare=make_shapes,
)
STATUS = Defaults(flags={"dir": "out"}, says="what is below out is shown")
