"""Check this machine: python jobs/doctor.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cli.main import main  # noqa: E402
from pipelines.status.doctor import DoctorFlags, doctor  # noqa: E402

if __name__ == "__main__":
    main(DoctorFlags, doctor, example="python jobs/doctor.py --storage /shared", keep_stdout=True)
