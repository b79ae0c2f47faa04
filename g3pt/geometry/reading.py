"""Bytes of mesh files, read safely below one folder; which endings are meshes, and the error for those
that can't be used.

`load.py` turns the bytes into arrays, `load_appearance.py` into what a surface looks like.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

MESH_ENDINGS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
MAX_BYTES = 1 << 30
MAX_FACES = 20_000_000
ReadFile = Callable[[str], bytes]  # a relative URI of the asset -> its bytes, or MeshError
REASONS = (
    "missing-file",
    "empty",
    "corrupt",
    "unsupported",
    "external-uri",
    "non-finite",
    "too-large",
    "no-faces",
    "zero-extent",
    "unreadable",
)


class MeshError(ValueError):
    """A mesh that can't be used; `reason` is its short class (one of REASONS), the message says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {_printable(message)}")
        self.reason, self.message = reason, message

    def preceded_by(self, place: str) -> "MeshError":
        """The same error, its message preceded by a place (a line, a file)."""
        return MeshError(self.reason, f"{place}: {self.message}")


def _printable(text: str) -> str:
    """One line of at most 300 characters that moves no terminal's cursor: file names
    and parsers' errors hold anything.
    """
    line = " ".join(text.split())[:300]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


@contextlib.contextmanager
def naming_file(path: Path, root: Path) -> Iterator[None]:
    """Inside the block every exception but MemoryError becomes a MeshError whose message begins
    with the file's path below root.
    """
    try:
        yield
    except MeshError as error:
        raise error.preceded_by(shown_path(path, root)) from error.__cause__
    except MemoryError:
        raise
    except Exception as error:  # parsers may raise any exception for a broken file
        raise MeshError("corrupt", f"{shown_path(path, root)}: {type(error).__name__}: {error}") from error


def shown_path(path: Path, root: Path) -> str:
    """The file's path below root, or its name alone if it is elsewhere; the last 100 characters."""
    full = Path(os.path.abspath(path))
    return (full.relative_to(root).as_posix() if full.is_relative_to(root) else path.name)[-100:]


def read_below(path: Path, root: Path, missing_reason: str) -> bytes:
    """Content of a regular file that, links resolved, lies below root and is not huge.

    Never waits on a pipe or device.
    """
    try:
        resolved = Path(os.path.realpath(path))  # unlike Path.resolve it answers for links that run in a circle
        if not resolved.is_relative_to(root):
            raise MeshError("external-uri", f"{path.name} is outside the input folder")
        return _regular_content(resolved, missing_reason)
    except MeshError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MeshError(missing_reason, f"{path.name} does not exist") from error
    except (OSError, ValueError) as error:  # no permission, a broken disk; a name too long or with a zero byte
        raise MeshError("unreadable", f"{path.name[:100]}: {getattr(error, 'strerror', None) or error}") from error


def _regular_content(path: Path, missing_reason: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise MeshError(missing_reason, f"{path.name} is a folder, pipe or device, not a file")
        if about.st_size > MAX_BYTES:
            raise MeshError("too-large", f"{path.name} has {about.st_size} bytes, the limit is {MAX_BYTES}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(descriptor)


def sibling_reader(path: Path, root: Path) -> Callable[[str], bytes]:
    """Reader of the files that an asset names, relative to it and below root."""

    def read(uri: str) -> bytes:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri) or uri.startswith(("/", "\\")):
            raise MeshError("external-uri", f"{uri[:80]!r} is not a relative path")
        return read_below(path.parent / uri.replace("\\", "/"), root, "missing-file")

    return read


def as_utf8(content: bytes) -> bytes:
    """UTF-16 text with a byte-order mark as UTF-8; other bytes unchanged."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16").encode()
        except UnicodeError as error:
            raise MeshError("corrupt", "the text begins as UTF-16, but is not") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def as_text(content: bytes, suffix: str) -> bytes:
    """The content as UTF-8 if it is UTF-16 text of this format with a byte-order mark; binary STL and PLY unchanged."""
    begin = {".stl": "solid", ".ply": "ply"}.get(suffix, "")
    if begin and not content[:100].decode("utf-16", "ignore").lstrip().lower().startswith(begin):
        return content
    return as_utf8(content)
