"""The whole pipeline at toy size in about 13 minutes: python jobs/quickstart.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.quickstart import QuickstartFlags, quickstart  # noqa: E402

if __name__ == "__main__":
    main(QuickstartFlags, quickstart, example="python jobs/quickstart.py --output out/demo")
