"""Tables derived from a dataset's shards (tokens, condition features): one derived shard per shard, joined by id.

A derived shard stores the sha256 of the parquet it was made from; if that changes, the derived shard is stale.
Layout: docs/concepts/contracts.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.datasets import DatasetInfo, parquet_bytes
from g3pt.data.records import shard_name
from g3pt.data.storage import Location, location, open_parquet, write_atomic, written_whole


def derived_path(dataset: str | Location | DatasetInfo, kind: str, index: int) -> Location:
    """`derived/<kind>/shard-00042.parquet`; `kind` is `<name>-<export-hash8>`."""
    folder = dataset.path if isinstance(dataset, DatasetInfo) else location(dataset)
    return folder / "derived" / kind / f"{shard_name(index)}.parquet"


def write_derived(dataset: DatasetInfo, kind: str, index: int, table: pa.Table) -> Location:
    """Write one derived shard, which must have an `id` column, whole or not at all."""
    if "id" not in table.column_names:
        raise ValueError(f"a derived table needs an id column, got {table.column_names}")
    path = derived_path(dataset, kind, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**(table.schema.metadata or {}), **_made_from(dataset, index)}
    write_atomic(path, parquet_bytes(table.replace_schema_metadata(metadata)))
    return path


def write_derived_groups(
    dataset: DatasetInfo, kind: str, index: int, schema: pa.Schema, groups: Iterable[pa.Table]
) -> Location:
    """The same for a table that does not fit memory, one row group at a time. `schema` keeps its metadata."""
    path = derived_path(dataset, kind, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = schema.with_metadata({**(schema.metadata or {}), **_made_from(dataset, index)})
    with (
        written_whole(path) as name,
        pq.ParquetWriter(name, schema, compression="zstd", use_dictionary=False, write_statistics=False) as file,
    ):
        for table in groups:
            file.write_table(table.replace_schema_metadata(schema.metadata))
    return path


def _made_from(dataset: DatasetInfo, index: int) -> dict[bytes, bytes]:
    return {b"g3pt.source_sha256": dataset.shards[index].encode("ascii")}


def derived_is_current(dataset: DatasetInfo, kind: str, index: int) -> bool:
    """Whether the derived shard exists and was made from the present shard."""
    path = derived_path(dataset, kind, index)
    try:
        with open_parquet(path) as file:
            metadata = file.schema_arrow.metadata or {}
    except FileNotFoundError:
        return False
    return metadata.get(b"g3pt.source_sha256", b"").decode("ascii") == dataset.shards[index]


def read_derived(dataset: DatasetInfo, kind: str, shards: Iterable[int] | None = None) -> pa.Table:
    """All derived shards as one table sorted by id. ValueError names the first shard that is missing or stale."""
    tables = []
    for index in sorted(dataset.shards) if shards is None else shards:
        if not derived_is_current(dataset, kind, index):
            raise ValueError(f"{derived_path(dataset, kind, index)} is missing or older than its shard: make it again")
        with open_parquet(derived_path(dataset, kind, index)) as file:
            tables.append(file.read())
    if not tables:
        raise ValueError(f"dataset {dataset.path} has no shards")
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).sort_by("id")
