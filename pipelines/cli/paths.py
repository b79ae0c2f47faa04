"""The repository's root, and files below a folder that are named by data."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def file_below(folder: Path, name: str) -> Path | None:
    """The file `name` below `folder`; None if it is missing or outside, links followed."""
    if not name or "\0" in name:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
