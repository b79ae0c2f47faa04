"""test_losses.parquet of a finished generator's run: the cross-entropy of each test object, in nats per token.

Columns: `id`, `ce` over all scales, `ce_scale_<k>`. Their means are `test_ce` and `test_ce_scale_<k>` of the ledger's
last record, to rounding. They cost no evaluation of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEST_LOSSES = "test_losses.parquet"


def write_object_losses(columns: Mapping[str, Any], run_dir: Path) -> None:
    """Write the run's test_losses.parquet, complete or not at all; numbers as float32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values, pa.string() if name == "id" else pa.float32()) for name, values in columns.items()}
    temporary = run_dir / f".{TEST_LOSSES}.{os.getpid()}"
    pq.write_table(pa.table(arrays), temporary)
    os.replace(temporary, run_dir / TEST_LOSSES)


def read_object_losses(run_dir: Path) -> dict[str, list[Any]] | None:
    """The columns of the run's test_losses.parquet; None for a run without: one made before there was such a file."""
    import pyarrow.parquet as pq

    try:
        found: dict[str, list[Any]] = pq.read_table(run_dir / TEST_LOSSES, use_threads=False).to_pydict()
    except FileNotFoundError:
        return None
    return found
