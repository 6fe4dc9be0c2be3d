"""Batches read and collated ahead of the step, in a background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omni_platform.train.task import Rows


@dataclass(frozen=True, kw_only=True)
class Fed:
    """One collated batch of one worker."""

    batch: Any
    row_ids: list[str]
    waited_s: float
    """How long the step had to wait for it."""


class Feed:
    """An iterator over the batches of the given row numbers; close it to end its thread."""

    def __init__(
        self, rows: Rows, batches: Iterator[list[int]], collate: Callable[[list[Any]], Any], *, depth: int
    ) -> None:
        self._rows, self._batches, self._collate = rows, batches, collate
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():  # it may stand in a put; make room until it has seen the event
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __next__(self) -> Fed:
        """The next batch. Whatever went wrong in the thread is raised here."""
        before_s = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        row_ids, batch = item
        return Fed(batch=batch, row_ids=row_ids, waited_s=time.perf_counter() - before_s)

    def _fill(self) -> None:
        try:
            for numbers in self._batches:
                if self._closed.is_set():
                    return
                rows = [self._rows.row(number) for number in numbers]
                self._ready.put(([self._rows.ids[n] for n in numbers], self._collate(rows)))
            self._ready.put(StopIteration())
        except BaseException as error:  # handed to the step, which is where it can be seen
            self._ready.put(error)
