"""Concurrent requests share model calls.

Callers know `place` and `submit`, and nothing of batches: an engine that admits a request while another one is in
the middle of a latent phase fits behind the same two.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from omni_serving.errors import RequestError
from omni_serving.reading import Limits

if TYPE_CHECKING:
    from omni_model.reason import Ask, Reply


class Reasoner(Protocol):
    """What serving needs of a model; `omni_model.reason.load_reasoner` gives one."""

    @property
    def fps(self) -> float: ...

    @property
    def max_frames(self) -> int: ...

    @property
    def method_name(self) -> str: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    def prompt_positions(self, question: str, options: tuple[str, ...]) -> int: ...

    def clip_positions(self, *, num_frames: int, height: int, width: int, num_samples: int) -> int: ...

    def answer(self, asks: list[Ask], *, max_new_tokens: int, max_phases: int) -> list[Reply]: ...


@dataclass(frozen=True, kw_only=True)
class _Job:
    ask: Ask
    limits: Limits
    client: str
    reply: asyncio.Future[Reply]


class Engine:
    """Micro-batches over `Reasoner.answer`, one call at a time, in a thread of its own.

    While the model works, requests gather; the next call takes up to `max_batch_size` of them that have the
    same limits, oldest first. Lives on one event loop; only the model call leaves it.
    """

    def __init__(self, reasoner: Reasoner, *, max_batch_size: int, batch_wait_s: float, max_requests: int) -> None:
        self._reasoner = reasoner
        self._max_batch_size, self._batch_wait_s = max_batch_size, batch_wait_s
        self._max_requests = max_requests
        self._open_requests = 0
        self._num_answering = 0
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def load(self) -> dict[str, int]:
        """How busy the engine is: `open` counts all that follows and the requests still being prepared."""
        return {
            "open_requests": self._open_requests,
            "waiting_requests": len(self._waiting),
            "answering_requests": self._num_answering,
            "max_requests": self._max_requests,
        }

    def check_capacity(self) -> None:
        """`RequestError` 429 where no place is left."""
        if self._open_requests >= self._max_requests:
            raise RequestError(
                f"the server is full ({self._max_requests} requests); try again in a moment",
                code="server_full",
                status=429,
            )

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request while its clip is fetched and decoded; `RequestError` 429 where none is left.

        Decoded clips are the memory of a replica, so the bound is here and not at `submit`.
        """
        self.check_capacity()
        self._open_requests += 1
        try:
            yield
        finally:
            self._open_requests -= 1

    def submit(self, ask: Ask, limits: Limits, *, client: str = "") -> asyncio.Future[Reply]:
        """Queue a request, from inside `place`; clients take turns. A cancelled future withdraws it."""
        job = _Job(ask=ask, limits=limits, client=client, reply=asyncio.get_running_loop().create_future())
        self._open_requests += 1
        job.reply.add_done_callback(self._leave)
        self._waiting.append(job)
        self._arrived.set()
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._serve_batches())
        return job.reply

    def check_alive(self) -> None:
        """RuntimeError where the loop over batches has ended: no request would ever be answered."""
        if self._loop_task is not None and self._loop_task.done():
            raise RuntimeError("the loop over batches has ended")

    def _leave(self, reply: asyncio.Future[Reply]) -> None:
        self._open_requests -= 1

    async def _serve_batches(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._max_batch_size:
                await asyncio.sleep(self._batch_wait_s)
            batch = self._take_batch()
            self._num_answering = len(batch)
            if batch:
                await self._answer(batch)
            self._num_answering = 0

    def _take_batch(self) -> list[_Job]:
        """The first request and those behind it that can share its call; withdrawn ones are dropped.

        A client's second request comes after the first of every other client, and so on; else the oldest comes first.
        """
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        turns: Counter[str] = Counter()
        queue: list[tuple[int, _Job]] = []
        for job in self._waiting:
            if not job.reply.done():
                queue.append((turns[job.client], job))
                turns[job.client] += 1
        for _, job in sorted(queue, key=lambda entry: entry[0]):
            fits = len(batch) < self._max_batch_size and (not batch or job.limits == batch[0].limits)
            (batch if fits else rest).append(job)
        self._waiting = rest
        if not rest:
            self._arrived.clear()
        return batch

    async def _answer(self, batch: list[_Job]) -> None:
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._call_model, batch)
        except Exception as error:
            await self._answer_alone_or_fail(batch, error)
            return
        for job, reply in zip(batch, replies, strict=True):
            if not job.reply.done():  # the client may have gone meanwhile
                job.reply.set_result(reply)

    def _call_model(self, batch: list[_Job]) -> list[Reply]:
        limits = batch[0].limits
        replies = self._reasoner.answer(
            [job.ask for job in batch], max_new_tokens=limits.max_new_tokens, max_phases=limits.max_phases
        )
        if len(replies) != len(batch):
            raise RuntimeError(f"the model gave {len(replies)} replies to {len(batch)} requests")
        return replies

    async def _answer_alone_or_fail(self, batch: list[_Job], error: Exception) -> None:
        """One request that the model cannot take must not fail those that shared its call."""
        if len(batch) > 1:
            for job in batch:
                await self._answer([job])
        elif not batch[0].reply.done():
            # A ValueError of omni_model speaks of what it was given, and says how to mend it.
            refusal = RequestError(str(error), code="not_answerable") if isinstance(error, ValueError) else error
            batch[0].reply.set_exception(refusal)
