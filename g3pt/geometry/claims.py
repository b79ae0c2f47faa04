"""Archives, web pages and other foreign files with a mesh's name, refused by their content."""

from g3pt.geometry.reading import MeshError

_CONTAINERS = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar",
}  # fmt: skip


def refuse_foreign(content: bytes, suffix: str) -> None:
    """MeshError if the content is not a file of this kind: an archive, a web page, a git-LFS pointer,
    another format.
    """
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
