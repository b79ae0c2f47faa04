"""Write one HTML page about any output: python -m pipelines.report out/demo"""

from pipelines.cli.main import main
from pipelines.report.page import ReportFlags, report

if __name__ == "__main__":
    main(ReportFlags, report, example="python -m pipelines.report out/demo")
