"""MLflow stores without runs, as copies of one: MLflow makes each by all its migrations, in 2.4 CPU seconds."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.tracking.client import SQLITE, Tracking


class EmptyStore:
    """The store that is copied; MLflow makes it when it is first needed.

    `copied()` lets this process's `Tracking` use it.
    """

    def __init__(self, folder: Path) -> None:
        self._first = folder / "mlflow.db"
        self._make = Tracking.__init__

    def lay(self, file: Path) -> None:
        """Put a copy where no file is."""
        if file.exists():
            return
        if not self._first.exists():
            self._make(object.__new__(Tracking), f"{SQLITE}{self._first}")
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.closing(sqlite3.connect(self._first)) as first,
            contextlib.closing(sqlite3.connect(file)) as copy,
        ):
            first.backup(copy)

    @contextlib.contextmanager
    def copied(self) -> Iterator[None]:
        """Inside the block a `Tracking` of a local store that is not there yet begins with a copy."""

        def opened(tracking: Tracking, uri: str) -> None:
            if uri.startswith(SQLITE):
                self.lay(Path(uri.removeprefix(SQLITE)))
            self._make(tracking, uri)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tracking, "__init__", opened)
            yield
