"""Read one mesh file into plain arrays, safely: .glb .gltf .obj .ply .stl .off.

Node transforms (and rest-pose skins) are applied, polygons triangulated, points and lines ignored, textures never
read. What an asset names is read only if it lies below `root`; the rest is refused with a reason.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
MAX_BYTES = 1 << 30
MAX_FACES = 20_000_000
REASONS = (
    "missing-file", "empty", "corrupt", "unsupported", "external-uri", "non-finite", "too-large", "no-faces",
    "zero-extent",
)


class MeshError(ValueError):
    """A mesh that can't be used; `reason` is its short class (one of REASONS), the message says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class LoadedMesh:
    """vertices (V, 3) float64, faces (F, 3) int64, and the axis its format calls up ("y" or "unspecified")."""

    vertices: np.ndarray
    faces: np.ndarray
    up_axis: str


def load_mesh(path: str | Path, root: str | Path) -> LoadedMesh:
    """Mesh of one file below the folder `root`. Raises MeshError with a reason when it can't be used."""
    path, root = Path(path), Path(root).resolve()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MeshError("unsupported", f"{path.name} is none of {', '.join(SUFFIXES)}")
    content = read_below(path, root, "missing-file")
    if not content.strip():
        raise MeshError("empty", f"{path.name} is empty")
    try:
        vertices, faces = _parse(content, suffix, path, root)
    except MeshError:
        raise
    except MemoryError as error:
        raise MeshError("too-large", f"{path.name} does not fit in memory") from error
    except Exception as error:  # a parser may answer a broken file with any exception: name it, don't hide it
        raise MeshError("corrupt", f"{path.name}: {type(error).__name__}: {_one_line(error)}") from error
    return _checked(vertices, faces, "y" if suffix in (".glb", ".gltf") else "unspecified")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_below(path: Path, root: Path, missing_reason: str) -> bytes:
    """Content of a file that, links resolved, lies below root and is not huge."""
    if not path.resolve().is_relative_to(root):
        raise MeshError("external-uri", f"{path.name} lies outside the input folder")
    if not path.is_file():
        raise MeshError(missing_reason, f"{path.name} does not exist")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise MeshError("too-large", f"{path.name} has {size} bytes, the limit is {MAX_BYTES}")
    return path.read_bytes()


def sibling_reader(path: Path, root: Path) -> Callable[[str], bytes]:
    """Reader of the files that an asset names, relative to it and below root."""

    def read(uri: str) -> bytes:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri) or uri.startswith(("/", "\\")):
            raise MeshError("external-uri", f"{uri[:80]!r} is not a relative path")
        return read_below(path.parent / uri.replace("\\", "/"), root, "missing-file")

    return read


def _parse(content: bytes, suffix: str, path: Path, root: Path) -> tuple[np.ndarray, np.ndarray]:
    _refuse_foreign_content(content, suffix)
    if suffix in (".glb", ".gltf"):
        from g3pt.geometry.gltf import read_gltf

        return read_gltf(content, sibling_reader(path, root))
    return _through_trimesh(content, suffix)


def _refuse_foreign_content(content: bytes, suffix: str) -> None:
    head = content[:200].lstrip().lower()
    if content.startswith(b"version https://git-lfs"):
        raise MeshError("corrupt", "a git-LFS pointer, not the file itself")
    if head.startswith((b"<!doctype", b"<html")):
        raise MeshError("corrupt", "an HTML page, not a mesh")
    if suffix == ".glb" and not content.startswith(b"glTF"):
        raise MeshError("corrupt", "GLB has a wrong magic number")
    if suffix != ".glb" and suffix != ".gltf" and content.startswith(b"glTF"):
        raise MeshError("corrupt", f"GLB content in a {suffix} file")


def _through_trimesh(content: bytes, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    import io

    import trimesh

    if suffix == ".stl":
        _check_stl(content)
    if suffix in (".obj", ".off"):
        content = as_utf8(content)
    if suffix == ".off":
        _check_off(content)
    options = {"split_object": False, "group_material": False, "skip_materials": True} if suffix == ".obj" else {}
    loaded = trimesh.load(io.BytesIO(content), file_type=suffix[1:], process=False, resolver=None, **options)
    scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
    meshes = [mesh for mesh in scene.dump() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    if not meshes:
        raise MeshError("no-faces", "the file has no faces")
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return (
        np.concatenate([np.asarray(mesh.vertices, dtype=np.float64) for mesh in meshes]),
        np.concatenate([np.asarray(mesh.faces) + start for mesh, start in zip(meshes, starts, strict=False)]),
    )


def as_utf8(content: bytes) -> bytes:
    """UTF-16 text with a byte-order mark as UTF-8; other bytes unchanged."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16").encode()
    return content.removeprefix(b"\xef\xbb\xbf")


def _check_stl(content: bytes) -> None:
    """A binary STL says its number of faces: a file cut short must not pass as a smaller mesh."""
    if content[:5].lower() == b"solid" and b"facet" in content[:2000].lower():
        return
    if len(content) < 84:
        raise MeshError("corrupt", "STL header is cut off")
    count = struct.unpack_from("<I", content, 80)[0]
    if 84 + 50 * count > len(content):
        raise MeshError("corrupt", f"STL says {count} faces but holds {(len(content) - 84) // 50}")


def _check_off(content: bytes) -> None:
    numbers = re.match(rb"\s*(?:[A-Za-z]*OFF)?(?:\s|#[^\n]*\n)*(\d+)\s+(\d+)", content)
    if numbers and max(map(int, numbers.groups())) > len(content):
        raise MeshError("corrupt", f"OFF header claims {numbers[1].decode()} vertices in {len(content)} bytes")


def _checked(vertices: np.ndarray, faces: np.ndarray, up_axis: str) -> LoadedMesh:
    vertices = np.ascontiguousarray(vertices, dtype=np.float64).reshape(-1, 3)
    faces = np.ascontiguousarray(faces, dtype=np.int64).reshape(-1, 3)
    if len(faces) == 0:
        raise MeshError("no-faces", "the mesh has no faces")
    if len(faces) > MAX_FACES:
        raise MeshError("too-large", f"{len(faces)} faces, the limit is {MAX_FACES}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError("corrupt", f"face index {faces.max()} is out of range for {len(vertices)} vertices")
    used = vertices[np.unique(faces)]
    if not np.isfinite(used).all():
        raise MeshError("non-finite", "vertex positions are not finite")
    if not (used.max(axis=0) - used.min(axis=0)).max() > 0.0:
        raise MeshError("zero-extent", "all vertices are at one place")
    return LoadedMesh(vertices=vertices, faces=faces, up_axis=up_axis)
