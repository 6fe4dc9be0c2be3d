"""Files with one row group per clip, read clip by clip: the last clips and files are kept open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from omni_platform import storage

_OPEN_FILES = 16

T = TypeVar("T")
Place = tuple[str, int]
"""File and row group."""


class RowGroupReader(Generic[T]):
    """Reads row groups and remembers what was made of the last ones. Not for sharing between threads."""

    def __init__(self, parse: Callable[[pa.Table], T], *, cached: int) -> None:
        """`parse` must pickle; what it returns is shared between calls."""
        self._parse, self._cached = parse, cached
        self._read: OrderedDict[Place, T] = OrderedDict()
        self._files: OrderedDict[str, tuple[IO[bytes], pq.ParquetFile]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"parse": self._parse, "cached": self._cached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["parse"], cached=state["cached"])

    def read(self, place: Place) -> T:
        """What the row group holds."""
        if place not in self._read:
            uri, group = place
            self._read[place] = self._parse(self._open(uri).read_row_group(group))
        self._read.move_to_end(place)
        while len(self._read) > self._cached:
            self._read.popitem(last=False)
        return self._read[place]

    def _open(self, uri: str) -> pq.ParquetFile:
        if uri not in self._files:
            handle = storage.open_read(uri)
            self._files[uri] = (handle, pq.ParquetFile(handle))
        self._files.move_to_end(uri)
        while len(self._files) > _OPEN_FILES:
            _, (handle, _) = self._files.popitem(last=False)
            handle.close()
        return self._files[uri][1]


def find_clips(
    folder: str, kind: str, *, columns: tuple[str, ...] = ()
) -> dict[str, list[tuple[Place, dict[str, Any]]]]:
    """Clip id -> where its row groups of a kind lie, and the given columns of each group's first row.

    They are several where a run that was interrupted and resumed met the clip twice.
    """
    found: dict[str, list[tuple[Place, dict[str, Any]]]] = {}
    for uri in storage.list_files(storage.join(folder, kind), ".parquet"):
        with storage.open_read(uri) as handle:
            file = pq.ParquetFile(handle)
            rows, first = file.read(columns=["clip_id", *columns]).to_pylist(), 0
            for group in range(file.num_row_groups):
                row = rows[first]
                found.setdefault(row.pop("clip_id"), []).append(((uri, group), row))
                first += file.metadata.row_group(group).num_rows
    return found
