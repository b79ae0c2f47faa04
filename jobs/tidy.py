"""Remove what no command reads again below a folder: python jobs/tidy.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.status.tidy import TidyFlags, tidy  # noqa: E402

if __name__ == "__main__":
    main(TidyFlags, tidy, example="python jobs/tidy.py out --dry-run", keep_stdout=True)
