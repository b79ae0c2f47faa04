"""Train the tokenizer CVQ: python jobs/train_cvq.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import TRAIN_CVQ  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402
from pipelines.train.jobs import TrainCVQFlags, train_cvq  # noqa: E402

if __name__ == "__main__":
    main(
        TrainCVQFlags,
        partial(train_cvq, page=write_report),
        example="python jobs/train_cvq.py --data out/shapes --output out/runs --preset nano",
        defaults=TRAIN_CVQ,
    )
