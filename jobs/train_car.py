"""Train the generator CAR: python jobs/train_car.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import TRAIN_CAR  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402
from pipelines.train.jobs import TrainCARFlags, train_car  # noqa: E402

if __name__ == "__main__":
    main(
        TrainCARFlags,
        partial(train_car, page=write_report),
        example="python jobs/train_car.py --data out/shapes --tokenizer out/runs/cvq-nano-s0-XXXXXXXX --output "
        "out/runs --preset nano",
        defaults=TRAIN_CAR,
    )
