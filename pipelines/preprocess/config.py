"""What a preprocessing run is asked for: the flags, what they make of a mesh, and which of them change a row's bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from g3pt.data import records
from g3pt.geometry.convert import ConvertConfig
from pipelines.cli.flags import DryRun, OnRay, listed

RENDERER = 2  # raise it when a change makes other pictures of the same meshes
CODE_VERSION = 2  # raise it when a change of geometry or sampling changes a row's bytes: finished shards become stale


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(DryRun, OnRay):
    """Turn meshes into a dataset: watertight solids, surface points, occupancy labels and views in sharded Parquet.

    Starting the same command again skips finished shards.
    """

    source: Literal["shapes", "dir", "objaverse"]
    """where objects come from: procedural shapes, a folder of meshes, or Objaverse 1.0 from the Hugging Face hub (HF_ENDPOINT, HF_TOKEN)"""
    output: str
    """folder of the dataset, or s3://bucket/path, gs://bucket/path"""
    input: str | None = None
    """dir: folder of .glb .gltf .obj .ply .stl .off files (a manifest.csv there names the objects); objaverse: folder of downloads, default $HF_HOME/objaverse"""
    ids: str | None = None
    """file of ids, one a line: take only these; default all"""
    categories: str | None = None
    """take only objects of these categories, comma-separated (objaverse: LVIS categories); default all"""
    licenses: str | None = None
    """take only objects with one of these licences, comma-separated; open: CC0, public domain, CC-BY, MIT, BSD, Apache; default all"""
    captions: str | None = None
    """CSV of rows id,caption without a header, as Cap3D gives them; default none"""
    limit: int | None = None
    """take only the objects with the N smallest sha256(id); default all"""
    num_shards: int | None = None
    """shards (files) of the dataset; default as before in this folder, else one per 16 objects up to 1024 shards, then 128 objects each"""
    resolution: int = 256
    """grid cells along the box when the solid is made"""
    watertight: Literal["narrowband", "mesh2sdf"] = "narrowband"
    """how the solid is made; mesh2sdf is slow"""
    views: int = 0
    """rendered RGBA views per object, textured"""
    view_size: int = 256
    """width and height of a view in pixels"""
    cameras: Literal["random", "ring", "axes"] = "random"
    """of the views: heights drawn, one height, or six sides"""
    num_surface: int = 16384
    """surface points per object, and as many again for evaluation"""
    num_sharp: int = 4096
    """points on sharp edges per object"""
    num_queries: int = 32768
    """labelled points near the surface, as many in the volume; 8 divides it"""
    timeout_s: float | None = None
    """seconds for one object before it is killed; default 60, with mesh2sdf 900"""
    download_timeout_s: float = 600.0
    """seconds for one download of --source objaverse, all tries together"""
    drop_downloads: bool = False
    """remove each mesh that was downloaded once its shard is written"""
    memory_limit_gb: float = 8.0
    """address space in GiB for one object's child process"""
    seed: int = 0
    """seed of shapes, points and views"""
    retry_failed: bool = False
    """redo shards that hold timeouts, out-of-memory or download errors"""
    rehash: bool = False
    """read every input again where size and time of its files say that they did not change"""
    keep_solid: bool = False
    """store each solid mesh as well (column solid, a binary PLY)"""
    num_workers: int | None = None
    """shards converted at a time; default the cluster's CPUs"""

    def __post_init__(self) -> None:
        for name in (
            "limit",
            "num_shards",
            "view_size",
            "num_workers",
            "timeout_s",
            "memory_limit_gb",
            "download_timeout_s",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        self.record, self.convert  # noqa: B018 (both check their own numbers)

    @property
    def record(self) -> records.RecordConfig:
        """The dataset's schema."""
        shared = {name: getattr(self, name) for name in ("num_surface", "num_sharp", "num_queries", "keep_solid")}
        return records.RecordConfig(**shared, num_views=self.views)

    @property
    def convert(self) -> ConvertConfig:
        """What a mesh becomes."""
        names = ("resolution", "watertight", "num_surface", "num_sharp", "num_queries")
        return ConvertConfig(**{name: getattr(self, name) for name in names})

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes a row's bytes: what the config hash covers."""
        found = {
            "schema_version": records.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
            "convert": asdict(self.convert),
            "record": asdict(self.record),
            "views": {"size": self.view_size, "cameras": self.cameras, "renderer": RENDERER} if self.views else None,
            "seed": self.seed,
        }
        return json.loads(records.canonical_json(found))

    @property
    def wanted_categories(self) -> tuple[str, ...]:
        """What --categories lists."""
        return listed(self.categories)

    @property
    def wanted_licenses(self) -> tuple[str, ...]:
        """What --licenses lists."""
        return listed(self.licenses)

    @property
    def time_limit_s(self) -> float:
        """Seconds for one object."""
        return self.timeout_s or (900.0 if self.watertight == "mesh2sdf" else 60.0)
