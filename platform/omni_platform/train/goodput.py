"""Where a run's time goes: computing, waiting for data, saving, recovering from failures, starting.

Kept in the checkpoint, so that the report at the end covers every attempt of a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

KINDS = ("compute", "data_wait", "checkpoint", "recovery", "start")


class Goodput:
    """Seconds by kind, as one worker sees them.

    `recovery` is what a failure cost: from the checkpoint that the run went back to until training goes on, the lost
    steps among it. A pause that somebody asked for is not counted.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._began_s = time.time()

    def begin(self) -> None:
        """A run that starts at its beginning is ready for its first step."""
        self._seconds["start"] += time.time() - self._began_s

    def resume(self, seconds: Mapping[str, float], *, saved_at_s: float, stopped: bool) -> None:
        """A run is ready to go on from a checkpoint, which kept `seconds` when it was saved."""
        self._seconds |= seconds
        kind, since_s = ("start", self._began_s) if stopped else ("recovery", saved_at_s)
        self._seconds[kind] += max(0.0, time.time() - since_s)

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Count the time of the block."""
        began_s = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - began_s

    @contextmanager
    def step(self) -> Iterator[list[float]]:
        """Count a step as computing, but for the waits that the block appends."""
        waits_s: list[float] = []
        with self.spend("compute"):
            yield waits_s
        self._seconds["compute"] -= sum(waits_s)
        self._seconds["data_wait"] += sum(waits_s)

    @property
    def seconds(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return dict(self._seconds)

    def shares(self) -> dict[str, float]:
        """Each kind's share of the time counted."""
        total = sum(self._seconds.values()) or 1.0
        return {kind: round(value / total, 4) for kind, value in self._seconds.items()}
