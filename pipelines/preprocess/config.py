"""The flags of `jobs/preprocess.py`, checked, and which of them change a row's bytes (the config hash)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from g3pt.data import records
from g3pt.geometry.convert import ConvertConfig
from pipelines.cli.flags import DryRun, Numbers, OnRay, Priced, Replace, listed
from pipelines.runs.settings import flag

RENDERER = 2  # increase it when a change draws the same meshes differently
CODE_VERSION = 3  # increase it when geometry or sampling changes a row's bytes: finished shards need --replace
FILL_VERSION = 2  # increase it when a change fills other air: finished shards of --open-surfaces fill need --replace
OF_OLDER_COMMANDS = {"open_surfaces": "wall"}  # what recorded flags mean that lack these


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(DryRun, Priced, OnRay, Replace):
    """Turn meshes into a dataset: watertight solids, surface points, occupancy labels and views in sharded Parquet.

    Starting the same command again skips finished shards.
    """

    source: Literal["shapes", "dir", "objaverse"]
    """procedural shapes, a folder of meshes (dir), or Objaverse 1.0 from the Hugging Face hub (HF_ENDPOINT, HF_TOKEN)
    """
    output: str
    """folder of the dataset: local, s3://bucket/path or gs://bucket/path"""
    input: str | None = None
    """dir: folder of .glb .gltf .obj .ply .stl .off files (if it has a manifest.csv, that lists the objects);
    objaverse: folder of downloads, default $HF_HOME/objaverse"""
    ids: str | None = None
    """file of ids, one per line: take only these objects; default all"""
    categories: str | None = None
    """take only objects of these categories, comma-separated (objaverse: LVIS categories); default all"""
    licenses: str | None = None
    """take only objects with one of these licences, comma-separated; open: CC0, public domain, CC-BY, MIT, BSD, Apache;
    default all"""
    captions: str | None = None
    """CSV file of rows id,caption without a header, as in Cap3D; default none"""
    limit: int | None = None
    """take the N objects with the smallest sha256(id); default all"""
    num_shards: int | None = None
    """shards (files) of the dataset; default as before in this folder, else one per 16 objects up to 1024 shards, then
    128 objects per shard"""
    resolution: int = 256
    """cells per side of the grid on which the solid is made"""
    watertight: Literal["narrowband", "mesh2sdf"] = "narrowband"
    """method that makes the solid; mesh2sdf is slow"""
    open_surfaces: Literal["fill", "wall"] = "fill"
    """what becomes of open surfaces. fill: air that they enclose is inside (a column without lids, a mountain without a
    floor); wall: they become walls two voxels thick"""
    views: int = 0
    """rendered RGBA views per object, with textures"""
    view_size: int = 256
    """width and height of a view in pixels"""
    cameras: Literal["random", "ring", "axes"] = "random"
    """viewpoints: random heights, a ring at one height, or the six sides"""
    num_surface: int = 16384
    """surface points per object, and the same number again for evaluation"""
    num_sharp: int = 4096
    """points on sharp edges per object; 0: no column sharp"""
    num_queries: int = 32768
    """labelled points near the surface, and the same number in the volume, a multiple of 8; 0: none, which is enough
    for a generator but not for a tokenizer"""
    near_voxels: Numbers | None = None
    """noise of the points near the surface in voxels, as 0.5,1,3; default 0.001,0.005,0.02 of the box's half"""
    timeout_s: float | None = None
    """seconds after which an object is given up; default 60, with mesh2sdf 900"""
    download_timeout_s: float = 600.0
    """seconds for one download of --source objaverse, retries included"""
    download_rate: float = 10.0
    """objaverse: downloads begun per second by all workers together; the hub allows 3,000 in 5 minutes without a login
    """
    drop_downloads: bool = False
    """delete downloaded meshes once their shard is written"""
    memory_limit_gb: float = 8.0
    """memory limit in GiB (address space) of the process that converts an object"""
    seed: int = 0
    """seed of shapes, points and views"""
    seeds: str | None = None
    """shapes: objects of several seeds, comma-separated, 100,000 per seed; ids of seed K above 0 begin with sK/;
    default those of --seed"""
    retry_failed: bool = False
    """redo shards with timeouts, out-of-memory or download errors"""
    rehash: bool = False
    """read every input file again, also with unchanged size and time"""
    keep_solid: bool = False
    """also store each solid mesh (column solid, a binary PLY)"""
    num_workers: int | None = None
    """shards converted at a time; default one per CPU of the cluster"""
    probe: int = 0
    """with --dry-run: convert so many objects here to tell the hours and bytes of all"""

    def __post_init__(self) -> None:
        for name in (
            "limit",
            "num_shards",
            "view_size",
            "num_workers",
            "timeout_s",
            "memory_limit_gb",
            "download_timeout_s",
            "download_rate",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if self.probe < 0 or (self.probe and not self.dry_run):
            raise ValueError(f"--probe {self.probe}: give a number of objects, and --dry-run")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        if self.wanted_seeds and self.source != "shapes":
            raise ValueError(f"--seeds chooses among procedural shapes; --source is {self.source}")
        if self.wanted_seeds and self.seed:
            raise ValueError(f"--seeds names the seeds of all shapes; leave out --seed {self.seed}")
        self.record, self.convert  # noqa: B018 (both check their values)

    @property
    def record(self) -> records.RecordConfig:
        """The schema of the dataset's rows."""
        shared = {name: getattr(self, name) for name in ("num_surface", "num_sharp", "num_queries", "keep_solid")}
        return records.RecordConfig(**shared, num_views=self.views, filled=self.open_surfaces == "fill")

    @property
    def convert(self) -> ConvertConfig:
        """How a mesh is converted."""
        names = ("resolution", "watertight", "open_surfaces", "num_surface", "num_sharp", "num_queries")
        noise = {} if self.near_voxels is None else {"near_sigmas": self.near_sigmas}
        return ConvertConfig(**{name: getattr(self, name) for name in names}, **noise)

    @property
    def near_sigmas(self) -> tuple[float, ...]:
        """Standard deviations of --near-voxels in units of the box. ValueError for what is no positive number."""
        try:
            voxels = tuple(sorted(map(float, listed(self.near_voxels))))
        except ValueError:
            voxels = ()
        if not voxels or not all(0 < value < self.resolution for value in voxels):
            raise ValueError(f"--near-voxels must be positive numbers such as 0.5,1,3, got {self.near_voxels!r}")
        return tuple(value * 2 / self.resolution for value in voxels)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a row's bytes; the config hash covers it.

        Datasets of walls have the settings, and so the hash, that they had before there was a choice.
        """
        convert = asdict(self.convert)
        filling = {"filling": FILL_VERSION}
        if self.open_surfaces == "wall":
            del convert["open_surfaces"]
            filling = {}
        found = {
            "schema_version": records.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
            **filling,
            "convert": convert,
            "record": self.record.as_json(),
            "views": {"size": self.view_size, "cameras": self.cameras, "renderer": RENDERER} if self.views else None,
            "seed": self.seed,
        }
        return json.loads(records.canonical_json(found))

    @property
    def wanted_seeds(self) -> tuple[int, ...]:
        """The seeds of --seeds, in order. ValueError for what is no seed."""
        found = listed(self.seeds)
        if self.seeds is not None and not (found and all(one.isascii() and one.isdigit() for one in found)):
            raise ValueError(f"--seeds must be comma-separated numbers such as 0,1,2, got {self.seeds!r}")
        return tuple(sorted(set(map(int, found))))

    @property
    def wanted_categories(self) -> tuple[str, ...]:
        """The categories of --categories."""
        return listed(self.categories)

    @property
    def wanted_licenses(self) -> tuple[str, ...]:
        """The licences of --licenses."""
        return listed(self.licenses)

    @property
    def time_limit_s(self) -> float:
        """Seconds per object."""
        return self.timeout_s or (900.0 if self.watertight == "mesh2sdf" else 60.0)


NOT_FLAGS = {
    "schema_version": "the schema's version",
    "code_version": "the conversion's version",
    "renderer": "the renderer's version",
    "filling": "the filling's version",
    "near_sigmas": "the near points' noise (--near-voxels)",
    "num_views": "--views",
    "size": "--view-size",
}


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `PreprocessConfig.settings` by the flags that set them."""
    found: dict[str, Any] = {"--open-surfaces": "wall"} if "convert" in settings else {}
    known = {field.name for field in fields(PreprocessConfig)}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= named(value)
        elif name != "views":  # None without views; --views is the record's num_views
            found[NOT_FLAGS.get(name) or (flag(name) if name in known else name)] = value
    return found
