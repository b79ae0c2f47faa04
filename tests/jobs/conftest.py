"""Slow tests of whole commands are a tier of their own (`tests/all_tiers.py`)."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Called for tests in this folder alone."""
    item.add_marker("jobs")
