"""Signals stop work in the main thread; other threads do not change their handlers."""

import os
import signal
import threading

import pytest

from pipelines.cli import interrupt


def test_a_signal_stops_the_work_and_handlers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "GRACE_S", 1e6)  # what would cut this process off
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(interrupt.Stopped) as stopped, interrupt.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_starts_ray_leaves_the_signals_alone() -> None:
    """Doctor's checks start Ray in a thread, and signal handlers can be set only in the main thread."""
    with interrupt.stoppable():
        armed = signal.getsignal(signal.SIGTERM)
        interrupt.in_thread(interrupt.rearm)
        assert signal.getsignal(signal.SIGTERM) is armed


def test_errors_of_a_thread_reach_the_caller() -> None:
    def fails() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        interrupt.in_thread(fails)
