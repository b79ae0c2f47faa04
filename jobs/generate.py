"""Generate meshes from text, an image or a file of prompts: python jobs/generate.py --help"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.demo.defaults import GENERATE  # noqa: E402
from pipelines.generate.config import GenerateConfig  # noqa: E402
from pipelines.generate.job import generate  # noqa: E402
from pipelines.report.page import write_report  # noqa: E402

if __name__ == "__main__":
    main(
        GenerateConfig,
        partial(generate, page=write_report),
        example='python jobs/generate.py --text "a tall wide chair" --num 4 --output out/meshes',
        defaults=GENERATE,
    )
