"""jobs/doctor.py: a line for each check; what everything needs must pass, the rest may fail."""

import pytest

from pipelines import doctor
from pipelines.doctor import DoctorFlags


def broken(*_: object) -> str:
    raise OSError("not here")


@pytest.fixture
def without_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray, MLflow and the renderer take seconds to start."""
    for name in ("check_ray", "check_mlflow", "check_renderer"):
        monkeypatch.setattr(doctor, name, lambda *_: "fine")


def test_a_missing_package_is_named(without_services: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    with pytest.raises(RuntimeError, match="cannot run the pipeline: packages$"):
        doctor.doctor(DoctorFlags())
    assert "packages  FAILS PackageNotFoundError" in capsys.readouterr().err


def test_no_renderer_is_no_obstacle(without_services: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "check_renderer", broken)
    doctor.doctor(DoctorFlags())
    assert "renderer  FAILS OSError: not here" in capsys.readouterr().err


def test_no_ray_is_one(without_services: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_ray", broken)
    with pytest.raises(RuntimeError, match="ray"):
        doctor.doctor(DoctorFlags())


@pytest.mark.slow
def test_this_machine_passes(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.doctor(DoctorFlags())
    lines = {line.split()[0]: line for line in capsys.readouterr().err.splitlines() if "  ok  " in line}
    assert {"python", "packages", "mlflow", "ray"} <= set(lines) and "workers import from" in lines["ray"]
