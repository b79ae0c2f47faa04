"""Evaluate a finished tokenizer or generator against a dataset: python jobs/evaluate.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import EVALUATE  # noqa: E402
from pipelines.evaluate.config import EvaluateFlags  # noqa: E402
from pipelines.evaluate.job import evaluate  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402

if __name__ == "__main__":
    main(
        EvaluateFlags,
        partial(evaluate, page=write_report),
        example="python jobs/evaluate.py --model out/runs/cvq-nano-s0-1a2b3c4d --data out/shapes --output out/cvq.json",
        defaults=EVALUATE,
    )
