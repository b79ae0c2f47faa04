"""Serve a page and an HTTP API for a generator: python jobs/serve.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.serve.config import ServeConfig  # noqa: E402
from pipelines.serve.job import serve  # noqa: E402

if __name__ == "__main__":
    main(ServeConfig, serve, example="python jobs/serve.py --port 8000")
