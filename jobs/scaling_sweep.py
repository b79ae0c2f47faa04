"""Train the generator CAR at several sizes and fit its scaling law: python jobs/scaling_sweep.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import SCALING_SWEEP  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402
from pipelines.study.config import SweepFlags  # noqa: E402
from pipelines.study.job import scaling_sweep  # noqa: E402
from pipelines.study.plan_file import with_plan_file  # noqa: E402

if __name__ == "__main__":
    main(
        SweepFlags,
        partial(scaling_sweep, page=write_report),
        example="python jobs/scaling_sweep.py --data out/shapes --tokenizer out/runs/cvq-nano-s0-XXXXXXXX --output "
        "out/study --steps 150",
        defaults=SCALING_SWEEP,
        expand=with_plan_file,
    )
