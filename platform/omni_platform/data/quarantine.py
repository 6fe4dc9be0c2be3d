"""Rows that could not be used: kept with their reason, counted, and never in the way of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omni_platform import storage
from omni_platform.data.tables import QUARANTINE_SCHEMA
from omni_platform.schema import Quarantined


class QuarantineError(ValueError):
    """More rows were refused than the configuration allows, or all of them."""


def to_table(rows: Iterable[Quarantined]) -> pa.Table:
    """Quarantined rows as an Arrow table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=QUARANTINE_SCHEMA)


def read_quarantine(folder: str | Path) -> list[Quarantined]:
    """All quarantined rows of an output folder, in the order of their ids."""
    rows: list[Quarantined] = []
    for uri in storage.list_files(storage.join(folder, "quarantine"), ".parquet"):
        with storage.open_read(uri) as file:
            rows += [Quarantined(**row) for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row.row_id)


def count_reasons(rows: Iterable[Quarantined]) -> dict[str, int]:
    """Reason -> number of rows, the most frequent first."""
    return dict(Counter(row.reason for row in rows).most_common())


def refuse_share(rows: list[Quarantined], num_in: int, allowed_share: float, *, where: str) -> None:
    """Raise `QuarantineError` where more than the allowed share of the rows, or all, were refused."""
    share = len(rows) / num_in
    if share <= allowed_share and len(rows) < num_in:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(rows).items())
    raise QuarantineError(
        f"{len(rows)} of {num_in} rows were quarantined ({reasons}); allowed is a share of "
        f"{allowed_share:g}, and never all. For example {rows[0].row_id}: {rows[0].detail}. "
        f"The others are in {storage.join(where, 'quarantine')}"
    )
