"""Prompts to samples: the flags or a prompts file, read and checked before any model is loaded.

A sample is a prompt with a seed and its guidance. A row of a prompts file that cannot be used is a sample with an `error`:
it becomes a failed row of the manifest, never the end of the job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UsageError, bad_input, one_line
from pipelines.generate_config import MAX_NUM, GenerateConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One mesh to make; `error` is set where the prompt cannot be used."""

    id: str
    text: str | None
    image: str | None  # as the prompt has it
    image_path: str | None = None  # absolute
    image_sha256: str | None = None
    seed: int = 0
    cfg: float = 0.0
    error: str | None = None

    @property
    def name(self) -> str:
        """File name without suffix: the id made safe, and the seed."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", self.id).strip("._")[:80]
        if safe != self.id:
            safe += "-" + hashlib.sha256(self.id.encode()).hexdigest()[:8]
        return f"{safe}-s{self.seed}"


def plan(config: GenerateConfig) -> list[Sample]:
    """All samples in order; rows of a prompts file that cannot be used are samples with an `error`."""
    if config.prompts is None:
        with bad_input():
            path = None if config.image is None else Path(config.image).expanduser().resolve(strict=True)
            _check_utf8(text=config.text, image=config.image)
            return _repeat(_sample(config, "sample", config.text, config.image, path, config.seed, config.cfg), config.num)
    samples = [s for number, row in enumerate(read_prompts(config.prompts)) for s in _row_samples(config, number, row)]
    repeated = [name for name, count in Counter(s.name for s in samples if s.error is None).items() if count > 1]
    if repeated:
        raise UsageError(f"{config.prompts}: {repeated[0]!r} comes more than once (same id and seed)")
    return samples


def read_prompts(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a prompts file; a line that is no JSON object comes as {'_error': reason}."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{path}: no such file")
    if file.suffix == ".parquet":
        try:
            yield from pq.read_table(file).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{path}: not a readable parquet file: {one_line(error)}") from error
        return
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON strings may hold the other line ends that splitlines knows
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from error
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = {"_error": f"not JSON: {error}"}
        yield row if isinstance(row, dict) else {"_error": f"not a JSON object: {line[:60]}"}


def _row_samples(config: GenerateConfig, number: int, row: dict[str, Any]) -> list[Sample]:
    """The samples of one row, or one failed sample that says what is wrong with it."""
    object_id, seed = f"prompt-{number:05d}", config.seed
    try:
        if row.get("_error"):
            raise ValueError(row["_error"])
        object_id = str(object_id if row.get("id") in (None, "") else row["id"])
        text, image = row.get("text") or None, row.get("image") or None
        if not all(isinstance(v, str) for v in (text or "", image or "")):
            raise ValueError("text and image must be strings")
        _check_utf8(id=object_id, text=text, image=image)
        seed = _integer(row, "seed", config.seed, 0, 2**62)
        count = _integer(row, "n", config.num, 1, MAX_NUM)
        cfg = config.cfg if row.get("cfg") is None else float(row["cfg"])
        dataclasses.replace(config.sampling, cfg=cfg)
        if text is None and image is None:
            raise ValueError("neither text nor image")
        path = None if image is None else inside_folder(Path(config.prompts or "").expanduser().parent, image)
        return _repeat(_sample(config, object_id, text, image, path, seed, cfg), count)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        shown = {name: printable(str(row.get(name) or "")) for name in ("text", "image")}
        return [Sample(id=printable(object_id), **shown, seed=seed, cfg=config.cfg, error=f"bad-prompt: {printable(one_line(error))}")]


def _check_utf8(**values: str | None) -> None:
    """A ValueError for text that no file can hold: JSON and command lines can bring half of a surrogate pair."""
    for name, value in values.items():
        if value is not None and printable(value) != value:
            raise ValueError(f"{name} is not valid Unicode: {printable(value)!r}")


def printable(text: str) -> str:
    """The text with what UTF-8 cannot encode written out."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _integer(row: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = default if row.get(name) is None else row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def inside_folder(folder: Path, image: str) -> Path:
    """The file that `image` names relative to `folder`; a ValueError if it is missing or lies outside, links included."""
    folder = folder.resolve()
    path = (folder / image).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"image {image!r} leaves the folder of the prompts")
    if not path.is_file():
        raise ValueError(f"image {image!r} is missing")
    return path


def _sample(config: GenerateConfig, object_id: str, text: str | None, image: str | None, path: Path | None, seed: int, cfg: float) -> Sample:
    digest = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    return Sample(id=object_id, text=text, image=image, image_path=path and str(path), image_sha256=digest, seed=seed, cfg=cfg)


def _repeat(sample: Sample, count: int) -> list[Sample]:
    return [dataclasses.replace(sample, seed=sample.seed + i) for i in range(count)]
