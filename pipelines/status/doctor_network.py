"""The checks of `jobs/doctor.py` that fetch something: Objaverse's files as the code expects them, the encoders.

They run only when asked for (`--objaverse`, `--encoders`), since they download. What differs from what the code expects
is said in one line; a difference that leaves objects out or unlicensed is a warning, one that stops work a failure.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from g3pt.data import licenses
from g3pt.data.records import id_hash
from g3pt.training.exports import write_json
from pipelines.cli.errors import one_line
from pipelines.cli.plain_text import plain
from pipelines.preprocess.sandbox import Sandbox
from pipelines.preprocess.sources.hub import REPOSITORY, Download, DownloadError, default_folder, endpoint
from pipelines.preprocess.sources.json_pairs import json_pairs
from pipelines.preprocess.sources.objaverse import LVIS, MESH_PATH, PATHS, UID
from pipelines.status.doctor_machine import Found, failed, ok, warning

UNREACHED = "set HF_ENDPOINT to a mirror that you can reach, or run this where there is a network"
NUM_OBJECTS = 2  # fetched and read
DOWNLOAD_S = 600.0
READ_S = 60.0
DIFFERS = "what the hub holds is not what this version reads: please report this line"
FIXED_TEXT = "a red wooden chair with four legs"
FIXED_PICTURE = 224  # pixels a side of a ramp of colours


def check_objaverse(folder: str | None = None) -> list[Found]:
    """Fetch the lists, one folder's metadata and two objects, and compare them with what the code reads."""
    root = Path(folder or default_folder())
    try:
        paths, odd = _paths(_fetched(root, PATHS))
        categories = _lvis(_fetched(root, LVIS))
        if not paths:
            return [
                failed(f"{PATHS} of {REPOSITORY} lists no object; {odd:,} entries are not glbs/000-000/ID.glb", DIFFERS)
            ]
        chosen = chosen_objects(paths, categories)
        about = _metadata(_fetched(root, f"metadata/{MESH_PATH.fullmatch(paths[chosen[0]])[1]}.json.gz"))
        found = [compared(paths, odd, categories, about)]
        for uid in chosen:
            found.append(_read(_fetched(root, paths[uid]), uid, about.get(uid)))
        return found
    except DownloadError as error:
        return [failed(f"{REPOSITORY} cannot be downloaded from {endpoint()} ({plain(str(error))})", UNREACHED)]
    except (ValueError, TypeError, AttributeError, EOFError, OSError) as error:
        return [
            failed(
                f"a file of {REPOSITORY} below {root} cannot be read: {one_line(error)}",
                "delete that folder and try again; " + DIFFERS,
            )
        ]


def _fetched(root: Path, name: str) -> Path:
    return Download(root, name, DOWNLOAD_S).result()


def _paths(file: Path) -> tuple[dict[str, str], int]:
    """(object -> path, number of entries that are no objects)."""
    with gzip.open(file) as stream:
        pairs = list(json_pairs(stream))
    good = {uid: path for uid, path in pairs if MESH_PATH.fullmatch(path) and UID.fullmatch(uid)}
    return good, len(pairs) - len(good)


def _lvis(file: Path) -> dict[str, list[str]]:
    with gzip.open(file) as stream:
        found = json.load(stream)
    if not isinstance(found, dict) or not all(isinstance(uids, list) for uids in found.values()):
        raise ValueError(f"{file.name} is not a list of objects for each category")
    return found


def _metadata(file: Path) -> dict[str, Any]:
    with gzip.open(file) as stream:
        found = json.load(stream)
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is not a JSON object of annotations")
    return found


def chosen_objects(paths: Mapping[str, str], categories: Mapping[str, Sequence[str]]) -> list[str]:
    """Two objects of one folder, those with the smallest sha256(id), with a category if any has one."""
    with_category = {uid for uid in itertools.chain(*categories.values()) if uid in paths} or set(paths)
    first = min(with_category, key=lambda uid: (id_hash(uid), uid))
    folder = paths[first].rsplit("/", 1)[0]
    beside = [uid for uid in paths if uid != first and paths[uid].rsplit("/", 1)[0] == folder]
    return [first, *sorted(beside, key=lambda uid: (uid not in with_category, id_hash(uid), uid))[: NUM_OBJECTS - 1]]


def compared(
    paths: Mapping[str, str], odd: int, categories: Mapping[str, Sequence[str]], about: Mapping[str, Any]
) -> Found:
    """What the lists contain, and how they differ from what the code reads."""
    unknown = Counter[str]()
    missing = Counter[str]()
    for one in about.values():
        one = one if isinstance(one, dict) else {}
        user = one.get("user") if isinstance(one.get("user"), dict) else {}
        word = one.get("license")
        if isinstance(word, str) and licenses.of_objaverse(word) == word:
            unknown[word] += 1
        there = {
            "license": isinstance(word, str), "name": isinstance(one.get("name"), str),
            "viewerUrl": isinstance(one.get("viewerUrl"), str), "tags[].name": _has_tag_names(one.get("tags")),
            "user.displayName": isinstance(user.get("displayName") or user.get("username"), str),
        }  # fmt: skip
        missing.update(name for name, is_there in there.items() if not is_there)
    in_lvis = set(itertools.chain(*categories.values()))
    said = (
        f"{len(paths):,} objects, {len(categories):,} LVIS categories with {len(in_lvis):,} objects, "
        f"{len(about):,} annotations read from {endpoint()}"
    )
    differences = [f"{odd:,} paths are not glbs/000-000/ID.glb"] if odd else []
    differences += [f"{len(in_lvis - set(paths)):,} objects of LVIS have no path"] if in_lvis - set(paths) else []
    differences += [f"{number:,} annotations have no {name}" for name, number in sorted(missing.items())]
    differences += [
        f"licence word {plain(word)!r} of {number:,} is unknown" for word, number in sorted(unknown.items())
    ]
    if not about:
        return failed(f"{said}: no annotation, so no licence", DIFFERS)
    if max(missing.values(), default=0) == len(about):
        return failed(f"{said}: {'; '.join(differences)}", DIFFERS)
    if differences:
        return warning(
            f"{said}: {'; '.join(differences)}",
            "such objects have no licence, author or category, and --licenses leaves them out",
        )
    return ok(f"{said}; all fields, paths and licence words as expected")


def _has_tag_names(tags: Any) -> bool:
    return isinstance(tags, list) and all(isinstance(tag, dict) and isinstance(tag.get("name"), str) for tag in tags)


def _read(file: Path, uid: str, about: Any) -> Found:
    """The mesh, read in a child as preprocessing reads it, beside what its annotation says."""
    box = Sandbox(timeout_s=READ_S)
    try:
        result = box.call(f"{__name__}:faces", {"path": str(file)})
    finally:
        box.close()
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    if result.table is None:
        return warning(
            f"{uid}: {size}, cannot be read ({plain(result.error)})", "preprocessing would skip it with this reason"
        )
    number = result.table["faces"][0].as_py()
    told = about.get("faceCount") if isinstance(about, dict) else None
    return ok(
        f"{uid}: {size}, {number:,} triangles"
        + (f" (its annotation says {told:,} faces)" if isinstance(told, int) else "")
    )


def faces(path: str) -> pa.Table:
    """The number of triangles of a mesh file, for the child."""
    from g3pt.geometry.load import load_mesh

    return pa.table({"faces": [len(load_mesh(path).faces)]})


def check_encoders(storage: str, names: Mapping[str, str] | None = None) -> list[Found]:
    """Load the encoders of the presets from 0.1B on, and compare their features of a fixed text and picture with those
    that the first such check left in the storage folder.
    """
    record = Path(storage) / "encoder_features.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    found, seen = [], dict(known)
    for condition, name in (names or _encoders()).items():
        try:
            values, revision, shape = FEATURES[condition](name)
        except (OSError, ValueError) as error:
            told, _, remedy = one_line(error).partition("; remedy: ")
            found.append(failed(f"{condition}: {told}", remedy or f"check {name}"))
            continue
        said = f"{condition} encoder {name} at {revision or 'no commit'}: {shape} features, norm {values[-1]:.4f}"
        before = known.get(name)
        seen[name] = {"revision": revision, "features": values}
        if before is None:
            found.append(ok(f"{said}; written to {record}, with which the next check compares"))
        elif max(abs(a - b) for a, b in zip(before["features"], values, strict=True)) > 1e-2 * values[-1]:
            found.append(
                failed(
                    f"{said}; other features than in {record}",
                    "other weights or another version of transformers: stored features and models fit only one of them",
                )
            )
        else:
            found.append(ok(f"{said}; as in {record}"))
    if seen.keys() != known.keys():
        write_json(record, seen)
    return found


def _encoders() -> dict[str, str]:
    """Condition -> encoder of the preset 0.1B."""
    from g3pt.config import car_preset

    config, _ = car_preset("0.1B")
    return {"text": config.text_encoder, "image": config.image_encoder}


def _text_features(name: str) -> tuple[list[float], str | None, str]:
    import torch

    from g3pt.models.encoders import TextEncoder

    encoder = TextEncoder(name)
    with torch.no_grad():
        return _summary(encoder(*encoder.tokenizer([FIXED_TEXT]))), encoder.revision, f"{encoder.width}"


def _image_features(name: str) -> tuple[list[float], str | None, str]:
    import torch

    from g3pt.models.encoders import ImageEncoder

    encoder, ramp = ImageEncoder(name, size=FIXED_PICTURE), torch.linspace(-1, 1, FIXED_PICTURE)
    picture = torch.stack(
        [ramp.expand(FIXED_PICTURE, -1), ramp[:, None].expand(-1, FIXED_PICTURE), 0 * ramp.expand(FIXED_PICTURE, -1)]
    )
    with torch.no_grad():
        return _summary(encoder(picture[None])), encoder.revision, f"{encoder.num_tokens} x {encoder.width}"


def _summary(features: Any) -> list[float]:
    """Eight values spread over the features, and their norm."""
    flat = features.float().flatten()
    return [*flat[:: max(1, len(flat) // 8)][:8].tolist(), float(flat.norm())]


FEATURES = {"text": _text_features, "image": _image_features}
