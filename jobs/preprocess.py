"""Make a dataset of sharded Parquet from meshes or procedural shapes: python jobs/preprocess.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import PREPROCESS  # noqa: E402
from pipelines.preprocess.config import PreprocessConfig  # noqa: E402
from pipelines.preprocess.job import preprocess  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402

if __name__ == "__main__":
    main(
        PreprocessConfig,
        partial(preprocess, page=write_report),
        example="python jobs/preprocess.py --source shapes --limit 300 --resolution 64 --output out/shapes",
        defaults=PREPROCESS,
    )
