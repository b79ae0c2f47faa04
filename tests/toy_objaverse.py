"""Objaverse in small for the hub's stand-in: six boxes in three folders, all but the last with annotation,
three of them in LVIS.
"""

import functools
from typing import Any

from tests.hub_server import HubServer

LICENSES = ("by", "by-nc", "cc0", "by-sa", "by", "editorial")
META = "metadata/000-00{}.json.gz"


def lay(hub: HubServer) -> None:
    """Put the meshes and the annotation files on the server."""
    for number in range(6):
        hub.files[mesh(number)] = box(1.0 + number / 4)
    hub.add_json("object-paths.json.gz", {uid(number): mesh(number) for number in range(6)})
    hub.add_json("lvis-annotations.json.gz", {"chair": [uid(0), uid(3)], "armchair": [uid(3)], "sofa": [uid(1)]})
    for folder in range(3):
        hub.add_json(META.format(folder), {uid(n): annotation(n, LICENSES[n]) for n in (folder, folder + 3) if n != 5})


@functools.cache
def box(height: float) -> bytes:
    """A .glb."""
    import trimesh

    return trimesh.creation.box((1.0, height, 1.0)).export(file_type="glb")


def uid(number: int) -> str:
    return f"uid{number}"


def mesh(number: int) -> str:
    return f"glbs/000-00{number % 3}/{uid(number)}.glb"


def annotation(number: int, word: str) -> dict[str, Any]:
    """As Sketchfab's interface gives it."""
    user = {"username": f"user{number}", "displayName": f"Author {number}", "profileUrl": "https://sketchfab.com/x"}
    tags = [{"slug": "red", "name": "Red", "uri": "u"}, {"name": "old wood"}]
    return {
        "uid": uid(number),
        "name": f"Thing\n{number} \ud800",
        "tags": tags,
        "license": word,
        "user": user,
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid(number)}",
        "faceCount": 12,
    }
