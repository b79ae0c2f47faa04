"""Prompts to samples: the flags or a prompts file, read and checked before any model is loaded.

A sample is a prompt with a seed and its guidance. An invalid row of a prompts file becomes a sample with an `error`; it
is recorded as failed in the manifest and the job continues. Pictures stored in a .parquet file are written to the
output folder under their sha256, where workers and readers of the manifest find them.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.pictures import check_header, cut_out
from g3pt.data.storage import Location, location, write_atomic
from g3pt.geometry.reading import MESH_ENDINGS
from g3pt.models.sampling import SampleConfig, check_keep_scales
from pipelines.cli.errors import UsageError, bad_input, one_line
from pipelines.cli.main import absolute
from pipelines.generate.config import MAX_NUM, MAX_SEED, GenerateConfig, is_blank, naming_flags, per_scale
from pipelines.preprocess.sources.content import read_content

BAD_PROMPT = "bad-prompt: "  # the start of the error of an invalid prompt
MARK = "\ufeff"  # the byte order mark that editors on Windows write before UTF-8 text
SHOWN = 10  # invalid prompts whose reason is printed
LINE_END = re.compile(r"\r\n|\r|\n")  # JSON strings may contain the other line ends of splitlines
COLUMNS = ("id", "text", "image", "seed", "n", "cfg", "cfg_text", "cfg_image", "mesh", "keep_scales")
PICTURES = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpg",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One mesh to make. `error` is set if the prompt is invalid."""

    id: str
    text: str | None
    image: str | None  # as in the prompt; for a picture stored in the prompts file, its path in the output folder
    image_path: str | None = None  # absolute
    image_sha256: str | None = None
    seed: int = 0
    cfg: Any = 0.0  # a number, or one per scale
    cfg_text: Any = None
    cfg_image: Any = None
    mesh: str | None = None  # the mesh to vary, as in the prompt
    mesh_path: str | None = None  # absolute
    mesh_sha256: str | None = None  # with the buffers that it names
    keep_scales: int = 0
    error: str | None = None
    has_twin: bool = False  # another id of the job differs from this one in upper and lower case only

    @property
    def name(self) -> str:
        """File name without suffix: the id with unsafe characters replaced, and the seed.

        Part of the id's hash follows where characters were replaced, or where a file system may take two ids for one.
        """
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", self.id).strip("._")[:80]
        if safe != self.id or self.has_twin:
            safe += "-" + hashlib.sha256(self.id.encode()).hexdigest()[:8]
        return f"{safe}-s{self.seed}"

    def settings(self, config: GenerateConfig) -> SampleConfig:
        """The sampling settings of this sample."""
        return dataclasses.replace(config.sampling, cfg=self.cfg, cfg_text=self.cfg_text, cfg_image=self.cfg_image)


def plan(config: GenerateConfig, num_scales: int | None = None) -> list[Sample]:
    """All samples in order.

    Invalid rows of a prompts file become samples with an `error`. `num_scales` is the model's, if known.
    """
    if config.prompts is None:
        with bad_input():
            path = None if config.image is None else _existing("--image", config.image)
            _check_utf8(text=config.text, image=config.image)
            if path is not None:
                _check_picture(path, config.image)
            sample = _sample(config, "sample", config.text, config.image, path)
            if config.from_mesh is not None:
                mesh = _existing("--from-mesh", config.from_mesh)
                with naming_flags():
                    sample = _varying(sample, config.from_mesh, mesh, config.keep_scales, num_scales)
            return _repeat(sample, config.num)
    samples = [
        s
        for number, row in enumerate(read_prompts(config.prompts))
        for s in _row_samples(config, number, row, num_scales)
    ]
    twins = {name for name, count in Counter(one.lower() for one in {s.id for s in samples}).items() if count > 1}
    samples = [dataclasses.replace(s, has_twin=True) if s.id.lower() in twins else s for s in samples]
    repeated = [name for name, count in Counter(s.name for s in samples if s.error is None).items() if count > 1]
    if repeated:
        raise UsageError(f"{config.prompts}: {repeated[0]!r} occurs more than once (same id and seed)")
    return samples


def _existing(flag: str, file: str) -> Path:
    """The absolute path of a flag's file, links resolved. ValueError if there is none."""
    path = Path(file).expanduser()
    if not path.exists():
        raise ValueError(f"{flag} {file}: no such file")
    return path.resolve()


def keep_pictures(config: GenerateConfig, samples: Iterable[Sample]) -> None:
    """Write the pictures that these samples need from a prompts file to the output folder, unless they are there
    already.
    """
    wanted = {
        sample.image_path
        for sample in samples
        if sample.image_path is not None and not location(sample.image_path).is_file()
    }
    for row in read_prompts(config.prompts) if config.prompts is not None and wanted else ():
        picture = _image(row)
        if isinstance(picture, bytes) and str(file := _picture_file(config, picture)) in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, picture)


def read_prompts(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a prompts file with the known COLUMNS. A line that is not a JSON object becomes {'_error': reason}.

    Byte order marks before a line or a text are left out.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{path}: no such file")
    if file.suffix == ".parquet":
        try:
            with pq.ParquetFile(file) as table:
                names = [name for name in table.schema_arrow.names if name.lstrip(MARK) in COLUMNS]
                for batch in table.iter_batches(batch_size=256, columns=names):
                    yield from map(_without_marks, batch.to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{path}: not a readable parquet file: {one_line(error)}") from error
        return
    for line in LINE_END.split(_utf8(file)):
        if is_blank(line):
            continue
        try:
            row = json.loads(line.strip().lstrip(MARK))
        except (ValueError, RecursionError) as error:
            row = {"_error": f"not JSON: {error}"}
        yield _without_marks(row) if isinstance(row, dict) else {"_error": f"not a JSON object: {line[:60]}"}


def _without_marks(row: dict[str, Any]) -> dict[str, Any]:
    """The row, its names without a byte order mark: a spreadsheet's first column may begin with one."""
    return {name.lstrip(MARK): value for name, value in row.items()}


def _utf8(file: Path) -> str:
    """The file's text. UsageError if it is not UTF-8."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        said = "it begins like UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else error
        raise UsageError(f"{file}: not UTF-8 text: {said}; save it as UTF-8") from error


def _row_samples(config: GenerateConfig, number: int, row: dict[str, Any], num_scales: int | None) -> list[Sample]:
    """The samples of one row, or one failed sample with the reason if the row is invalid."""
    object_id, seed, text, image = f"prompt-{number:05d}", config.seed, row.get("text"), _image(row)
    folder = Path(config.prompts or "").expanduser().parent
    try:
        if row.get("_error"):
            raise ValueError(row["_error"])
        if row.get("id") is not None and not is_blank(str(row["id"])):
            object_id = str(row["id"]).lstrip(MARK)
        if not isinstance(text or "", str) or not isinstance(image or "", (str, bytes)):
            raise ValueError("text must be a string, image a string or in .parquet bytes")
        _check_utf8(id=object_id, text=text, image=image if isinstance(image, str) else None)
        seed = _integer(row, "seed", config.seed, 0, MAX_SEED)
        count = _integer(row, "n", config.num, 1, MAX_NUM)
        text = None if is_blank(text or "") else text.lstrip(MARK)
        mesh = row.get("mesh") or None
        if not isinstance(mesh or "", str):
            raise ValueError("mesh must be a string")
        if not text and not image and not mesh:
            raise ValueError("text is blank" if row.get("text") else "neither text nor image nor mesh")
        source = image if isinstance(image, bytes) else inside_folder(folder, image) if image else None
        sample = dataclasses.replace(
            _sample(config, object_id, text, image or None, source), seed=seed, **_guidance(row)
        )
        if mesh:
            _check_utf8(mesh=mesh)
            keep = _integer(row, "keep_scales", config.keep_scales, 0, MAX_SEED)
            sample = _varying(sample, mesh, inside_folder(folder, mesh, "mesh"), keep, num_scales)
        settings = sample.settings(config)
        if num_scales is not None:
            settings.check_scales(num_scales)
        return _repeat(sample, count)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        shown = {
            "text": printable(str(text or "")),
            "image": "" if isinstance(image, bytes) else printable(str(image or "")),
        }
        return [
            Sample(
                id=printable(object_id),
                **shown,
                seed=seed,
                cfg=config.sampling.cfg,
                error=f"{BAD_PROMPT}{printable(one_line(error))}",
            )
        ]


def _image(row: dict[str, Any]) -> Any:
    """A row's picture: a path or bytes, also in the form of Hugging Face datasets; None without one."""
    image = row.get("image")
    if isinstance(image, dict) and not set(image) - {"bytes", "path"}:
        image = image.get("bytes") or image.get("path")
    return image or None


def _guidance(row: dict[str, Any]) -> dict[str, Any]:
    """A row's guidance, which SampleConfig checks. A row's `cfg` overrides `--cfg-text` and `--cfg-image`."""
    found = {name: per_scale(name, row.get(name)) for name in ("cfg", "cfg_text", "cfg_image")}
    return {name: value for name, value in found.items() if value is not None or found["cfg"] is not None}


def _check_utf8(**values: str | None) -> None:
    """ValueError for text that UTF-8 cannot encode: JSON and command lines can contain half of a surrogate pair."""
    for name, value in values.items():
        if value is not None and printable(value) != value:
            raise ValueError(f"{name} is not valid Unicode: {printable(value)!r}")


def printable(text: str) -> str:
    """The text with characters that UTF-8 cannot encode written as escapes."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _integer(row: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = default if row.get(name) is None else row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value.strip()):  # as strengths may be text, too
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def inside_folder(folder: Path, name: str, kind: str = "image") -> Path:
    """The file `name` relative to `folder`. ValueError if it is missing or outside the folder, links followed."""
    folder = folder.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{kind} {name!r} leaves the folder of the prompts")
    if not path.exists():
        raise ValueError(f"{kind} {name!r} is missing")
    if not path.is_file():
        raise ValueError(f"{kind} {name!r} is not a file")
    return path


def _varying(sample: Sample, mesh: str, path: Path, keep_scales: int | None, num_scales: int | None) -> Sample:
    """The sample as a variation of a mesh file. ValueError for a number of scales that the model lacks, if known."""
    if keep_scales is None:
        raise ValueError("keep_scales is missing: how many scales of the mesh are kept")
    if num_scales is not None:
        check_keep_scales(keep_scales, num_scales)
    if path.suffix.lower() not in MESH_ENDINGS:
        raise ValueError(f"mesh {mesh!r} is none of {', '.join(MESH_ENDINGS)}")
    sha256 = read_content(path.parent, path.name).sha256
    if not sha256:
        raise ValueError(f"mesh {mesh!r} is not a readable file")
    return dataclasses.replace(sample, mesh=mesh, mesh_path=str(path), mesh_sha256=sha256, keep_scales=keep_scales)


def _check_picture(path: Path, image: str) -> None:
    """ValueError if the picture of --image cannot be cut out."""
    if not path.is_file():
        raise ValueError(f"image {image!r} is not a file")
    with naming_picture(image):
        cut_out(path.read_bytes(), 8)


@contextlib.contextmanager
def naming_picture(image: str | None) -> Iterator[None]:
    """Inside the block, ValueErrors of `g3pt.data.pictures` name the picture, if it has a name."""
    try:
        yield
    except ValueError as error:
        name = "image" if image is None else f"image {image!r}"
        raise ValueError(f"{name} {one_line(error).removeprefix('image').lstrip()}") from None


def reasons(samples: Iterable[Sample]) -> list[str]:
    """Lines with the reasons of the first SHOWN invalid prompts."""
    bad = [f"{sample.id}: {sample.error}" for sample in samples if sample.error is not None]
    return bad[:SHOWN] + ([f"and {len(bad) - SHOWN} more bad rows"] if len(bad) > SHOWN else [])


def _sample(
    config: GenerateConfig, object_id: str, text: str | None, image: Any, source: Path | bytes | None
) -> Sample:
    """A sample with the flags' seed and guidance. `source` is its picture: a file, the bytes of one, or None."""
    asked, digest, path = config.sampling, None, None
    if source is not None:
        content = source if isinstance(source, bytes) else source.read_bytes()
        with naming_picture(image if isinstance(image, str) else None):
            check_header(content)
        path, digest = source, hashlib.sha256(content).hexdigest()
        if isinstance(source, bytes):
            path = _picture_file(config, source)
            image = f"images/{digest[:2]}/{path.name}"
    return Sample(id=object_id, text=text, image=image, image_path=path and str(path), image_sha256=digest,
                  seed=config.seed,
                  cfg=asked.cfg, cfg_text=asked.cfg_text, cfg_image=asked.cfg_image)  # fmt: skip


def _picture_file(config: GenerateConfig, content: bytes) -> Location:
    """The path in the output folder for a picture stored in the prompts file."""
    digest = hashlib.sha256(content).hexdigest()
    suffix = next((kind for start, kind in PICTURES.items() if content.startswith(start)), "img")
    return output_folder(config) / "images" / digest[:2] / f"{digest}.{suffix}"


def output_folder(config: GenerateConfig) -> Location:
    """The job's output folder, absolute because workers have another working directory."""
    return location(absolute(config.output))


def _repeat(sample: Sample, count: int) -> list[Sample]:
    return [dataclasses.replace(sample, seed=sample.seed + i) for i in range(count)]
