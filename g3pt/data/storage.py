"""Storage locations: a local folder or a bucket of an object store, with the same few operations on both.

How: `location("out/data")` is a pathlib.Path, `location("s3://bucket/data")` a `RemotePath` with the methods of Path
that datasets use. What Path lacks is a function here: listing a folder's files, writing a file whole or not at all,
Parquet. Locally a file is written under a temporary name, flushed and renamed; on an object store an upload becomes
visible when it ends. pyarrow finds login and endpoint where other tools do (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, a machine's role). Options of pyarrow's file system may follow in the URI:
s3://bucket/data?region=eu-west-1

Ours: uploads stay in pyarrow's background threads. Without them, closing after a failed part completes the upload
(measured): the file then lacks its middle.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

# S3: one PUT instead of three calls per small file. Google's client would retry for 15 minutes before it reports an
# unreachable store.
OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=30"}
PARALLEL_READS = 32  # from a bucket; they wait for the network, not for the processor
READ_AHEAD = 512
DENIED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|EXPIRED|UNRECOGNIZED_CLIENT|Unauthorized|Permission"
)
UNREACHED = re.compile("NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|Couldn't connect|Could not")
LOGIN = (
    "the login is read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from AWS_PROFILE, or from the machine's role"
)


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in a bucket: `store` (s3://bucket), `key` (the path in it) and `options` (after ?
    in the URI).
    """

    store: str
    key: str = ""
    options: str = ""

    def __str__(self) -> str:
        return f"{self.store}/{self.key}".rstrip("/") + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, key=f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part; the bucket's name for the bucket itself."""
        return PurePosixPath(self.key).name or self.store.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The name's ending, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return replace(self, key=self.key.rpartition("/")[0])

    def resolve(self) -> RemotePath:
        """Itself: a bucket has neither links nor a working directory."""
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists as soon as a file in it does."""

    def exists(self) -> bool:
        """Whether there is such a file, or a file below it."""
        return self._kind() is not pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._kind() is pafs.FileType.File

    def is_dir(self) -> bool:
        """Whether there are files below it."""
        return self._kind() is pafs.FileType.Directory

    def _kind(self) -> pafs.FileType:
        with self.opened() as (files, path):
            return files.get_file_info(path).type

    def read_bytes(self) -> bytes:
        """The file's content."""
        with self.opened() as (files, path), files.open_input_file(path) as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Upload the file; a reader sees the old or the new content."""
        with self.opened() as (files, path):
            upload = files.open_output_stream(path, compression=None)
            upload.write(data)
            upload.close()  # not `with`: after an error that would close, and thereby finish, an incomplete upload

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        with contextlib.suppress(*[FileNotFoundError] * missing_ok), self.opened() as (files, path):
            files.delete_file(path)

    def check_store(self) -> None:
        """ValueError if the bucket does not exist, which looking for a file in it would not reveal."""
        with self.opened() as (files, _):
            try:
                found = files.get_file_info(self.store.partition("://")[2])
            except OSError as error:
                if DENIED.search(str(error)):  # a login for part of the bucket may not inspect it
                    return
                raise
        if found.type is pafs.FileType.NotFound:
            raise ValueError(f"{self}: there is no bucket {self.store}")

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        """A context with (pyarrow's file system, this path in it), whose errors become one line
        with path and remedy.
        """
        try:
            yield _file_system(self.store, self.options, os.getpid()), f"{self.store.partition('://')[2]}/{self.key}"
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(self)) from None
        except (OSError, pa.ArrowInvalid) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        said = " ".join(re.sub(r"\(Request ID: \S*\)", "", str(error)).split())
        if "NO_SUCH_BUCKET" in said:
            return ValueError(f"{self}: there is no bucket {self.store}")
        if DENIED.search(said):
            return ValueError(f"{self}: access denied; {LOGIN} ({said})")
        if UNREACHED.search(said):
            return ConnectionError(errno.ENETUNREACH, f"{self}: the object store does not answer ({said})")
        return type(error)(f"{self}: {said}")


Location = Path | RemotePath


@functools.cache
def _file_system(store: str, options: str, _process: int) -> pafs.FileSystem:
    """The file system of a bucket and process: a forked process must not use its parent's connections."""
    given = "&".join(filter(None, [options, OPTIONS[store.partition("://")[0]]]))
    return pafs.FileSystem.from_uri(f"{store}?{given}")[0]


def location(path: str | Path | RemotePath) -> Location:
    """A local path, or a path in a bucket; ValueError for a URI of another kind."""
    if not is_remote(path) or isinstance(path, RemotePath):
        return Path(path) if isinstance(path, str) else path
    scheme, _, rest = str(path).partition("://")
    place, _, options = rest.partition("?")
    bucket, _, key = place.partition("/")
    if "@" in bucket:
        raise ValueError(f"{scheme}://...@{bucket.rpartition('@')[2]}: a login does not belong in a path; {LOGIN}")
    if scheme not in OPTIONS:
        raise ValueError(f"{path}: {scheme}:// is not known; give a local path, s3://bucket/path or gs://bucket/path")
    if not bucket:
        raise ValueError(f"{path}: a bucket's name is missing; give {scheme}://bucket/path")
    return RemotePath(f"{scheme}://{bucket}", "/".join(filter(None, key.split("/"))), options)


def is_remote(path: str | Path | RemotePath) -> bool:
    """Whether the path is a URI."""
    return isinstance(path, RemotePath) or isinstance(path, str) and "://" in path


def listing(folder: Location) -> dict[str, int]:
    """Name -> bytes of the files directly in a folder, empty if it is missing.

    One request per thousand files of a bucket.
    """
    if isinstance(folder, RemotePath):
        with folder.opened() as (files, path):
            found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type is pafs.FileType.File}
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return {}
    found = {}
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # a temporary file, renamed meanwhile
            if entry.is_file():
                found[entry.name] = entry.stat().st_size
    return found


def stamp(path: Location) -> list[int | str]:
    """What changes when a file does: its size in bytes, and its time of change in ns; of a bucket its entity tag, since
    times there are whole seconds.
    """
    if isinstance(path, Path):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    with path.opened() as (files, name), files.open_input_file(name) as file:
        about = {key.lower(): value for key, value in file.metadata().items()}
        tag = about["etag"].decode() if "etag" in about else str(files.get_file_info(name).mtime_ns)
        return [file.size(), tag]


def read_many(paths: Sequence[Location], ahead: int = READ_AHEAD) -> Iterator[bytes]:
    """Contents of files, in order. Files of a bucket are read in parallel, at most `ahead` of them in memory."""
    if not paths or isinstance(paths[0], Path):
        yield from (path.read_bytes() for path in paths)
        return
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for start in range(0, len(paths), ahead):
            yield from pool.map(lambda path: path.read_bytes(), paths[start : start + ahead])


def write_atomic(path: Location, data: bytes) -> None:
    """Write a file whole or not at all."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # frees a full disk at once
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_whole(path: Location) -> Iterator[Path]:
    """A context with a local file name to write to; when it ends, that file becomes `path`, whole or not at all."""
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            path.write_bytes((Path(folder) / path.name).read_bytes())
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_temporaries(folder: Location) -> None:
    """Remove what a killed writer left in a local folder. A bucket drops unfinished uploads by its own rules."""
    if isinstance(folder, Path):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def open_parquet(path: Location) -> Iterator[pq.ParquetFile]:
    """A context with a Parquet file to read; of a bucket's file only the requested columns are fetched."""
    if isinstance(path, Path):
        with pq.ParquetFile(path) as file:
            yield file
        return
    with (
        path.opened() as (files, name),
        files.open_input_file(name) as source,
        pq.ParquetFile(source, pre_buffer=True) as file,
    ):
        yield file


@contextlib.contextmanager
def naming(path: Location) -> Iterator[None]:
    """Turns what Arrow says of a file whose content it cannot read into a ValueError that names the file."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk or the network: it may be over soon
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error
