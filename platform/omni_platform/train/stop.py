"""Asking a run to stop: a signal to the driver raises a flag, and the workers see it after their step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError


class RunStopped(Exception):  # noqa: N818 - not an error: the run did what it was asked to
    """A signal stopped the run and its checkpoint is written; `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int | None, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + (signum or signal.SIGTERM)


@ray.remote(num_cpus=0)
class StopFlag:
    """A flag that the driver raises and worker 0 reads."""

    def __init__(self) -> None:
        self._raised = False

    def raise_flag(self) -> None:
        self._raised = True

    def is_raised(self) -> bool:
        return self._raised


class StopWatch:
    """Reads a flag without ever waiting for the answer: each look takes the answer to an earlier question."""

    def __init__(self, flag_name: str) -> None:
        self._flag = ray.get_actor(flag_name)
        self._question: Any = None

    def seen(self) -> bool:
        """Whether the flag was up when last asked. False where the flag itself is gone."""
        if self._question is None:
            self._question = self._flag.is_raised.remote()
        ready, _ = ray.wait([self._question], timeout=0)
        if not ready:
            return False
        answer, self._question = self._question, None
        try:
            return bool(ray.get(answer))
        except RayActorError:
            return False


class StopRequest:
    """What the signals to this process have asked for."""

    def __init__(self, flag: Any) -> None:
        self._flag = flag
        self.signum: int | None = None

    def receive(self, signum: int, _frame: Any) -> None:
        """The first signal asks the workers to stop; a second one does not wait for them."""
        if self.signum is not None:
            raise SystemExit(128 + signum)
        self.signum = signum
        self._flag.raise_flag.remote()
        print("stopping: the workers finish their step and save; a second signal ends at once", flush=True)


@contextmanager
def stop_on_signals(flag: Any) -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT raise the flag (in the main thread: no other gets signals)."""
    request = StopRequest(flag)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.receive) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
