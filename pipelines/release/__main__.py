"""Make a folder of weights for publication: python -m pipelines.release RUN --output FOLDER"""

from pipelines.cli.main import main
from pipelines.release.job import ReleaseFlags, release

if __name__ == "__main__":
    main(
        ReleaseFlags,
        release,
        example="python -m pipelines.release out/runs/cvq-nano-s0-1a2b3c4d --output weights/g3pt-nano-cvq",
    )
