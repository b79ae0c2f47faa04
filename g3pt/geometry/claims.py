"""Whether a mesh file contains what its header claims: checked by arithmetic, before anything is allocated or parsed.

A parser that trusts a header allocates what it says (353 billion vertices in 309 bytes), and one that doesn't count takes a truncated
file for a smaller mesh. Archives and web pages with a mesh's name are refused by their content.
"""

from g3pt.geometry.reading import MeshError

_CONTAINERS = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar",
}  # fmt: skip
_PLY_SIZES = {
    "char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8,
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8,
}  # fmt: skip


def check_content(content: bytes, suffix: str) -> None:
    """MeshError if the content is not a file of this kind, or is shorter than its header says."""
    _refuse_foreign(content, suffix)
    check = {".ply": _check_ply}.get(suffix)
    if check is not None:
        check(content)


def _refuse_foreign(content: bytes, suffix: str) -> None:
    head = content[:200].lstrip().lower()
    if content.startswith(b"version https://git-lfs"):
        raise MeshError("corrupt", "a git-LFS pointer, not the file itself")
    if head.startswith((b"<!doctype", b"<html")):
        raise MeshError("corrupt", "an HTML page, not a mesh")
    for magic, name in _CONTAINERS.items():
        if content.startswith(magic):
            raise MeshError("unsupported", f"{name} content in a {suffix} file: unpack it first")
    if suffix == ".glb" and not content.startswith(b"glTF"):
        raise MeshError("corrupt", "GLB has a wrong magic number")
    if suffix != ".glb" and suffix != ".gltf" and content.startswith(b"glTF"):
        raise MeshError("corrupt", f"GLB content in a {suffix} file")


def _check_ply(content: bytes) -> None:
    """Check a PLY: each element takes at least its scalars and the lengths of its lists, or one line of text."""
    header, end, body = content.partition(b"end_header")
    if not content.startswith(b"ply") or not end:
        raise MeshError("corrupt", "PLY header is cut off or is none")
    lines = [line.split() for line in header.decode("ascii", "replace").splitlines()]
    is_text = ["format", "ascii", "1.0"] in lines
    needed, claims, count = 0, [], 0
    rows = _lines(body) if is_text else []
    held = len(rows) if is_text else len(body)
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3 and words[2].isdigit():
            count = int(words[2])
            claims.append(f"{count} {words[1]}")
            needed += count if is_text else 0
        elif words[:1] == ["property"] and len(words) > 2 and not is_text:
            needed += count * _PLY_SIZES.get(words[2] if words[1] == "list" else words[1], 0)
    if needed > held:
        raise MeshError("corrupt", f"PLY claims {', '.join(claims)} in {held} {'lines' if is_text else 'bytes'}")
    if rows and lines[-1][:2] == ["property", "list"] and claims[-1].endswith(" face"):
        _check_whole_face(rows[needed - 1])


def _check_whole_face(line: bytes) -> None:
    """Refuse a text file whose last line, cut off, lacks a corner."""
    words = line.split()
    if words[0].isdigit() and len(words) <= int(words[0]):
        raise MeshError(
            "corrupt", f"the last face has {len(words) - 1} of {int(words[0])} corners: the file is cut off"
        )


def _lines(text: bytes) -> list[bytes]:
    """The lines that are not blank."""
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
