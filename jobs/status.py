"""Show what a folder contains and which commands to type next: python jobs/status.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import STATUS  # noqa: E402
from pipelines.status.job import StatusFlags, status  # noqa: E402

if __name__ == "__main__":
    main(StatusFlags, status, example="python jobs/status.py out/demo", keep_stdout=True, defaults=STATUS)
