"""Where this code lies, and files that a name from data may point to."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def file_below(folder: Path, name: str) -> Path | None:
    """The file `name` below `folder`; None if it is missing or lies outside, links followed."""
    if not name or "\0" in name:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
