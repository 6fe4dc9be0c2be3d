"""Fetching and decoding clips beside the model, each with its own slots.

A clip from outside can make a codec hang or crash, and a host can send a byte a second. Neither may hold up the
model or other clips: decoders are processes of their own (`omni_platform.media.decode_process`), files are fetched
before they take a decoder, and clients take turns at both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from omni_platform.media.decode import DecodedClip
from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.errors import MediaError
from omni_platform.media.limits import MediaLimits
from omni_serving.config import ServeConfig
from omni_serving.inputs import explain, is_http, open_file
from omni_serving.remote import check_url, fetch
from omni_serving.turns import Turns

_NAME = "the video"
"""What messages call a clip: a client has no use for the server's own paths."""

T = TypeVar("T")


class DecodePool:
    """`decode_workers` decoders and `fetch_workers` fetches of one replica. Lives on one event loop."""

    def __init__(self, config: ServeConfig, *, fps: float, max_frames: int) -> None:
        self._config = config
        self._options: dict[str, Any] = {
            "decoder": "pyav",  # the only one for files from strangers
            "fps": fps,
            "max_frames": max_frames,
            "max_duration_s": config.max_duration_s,
            "limits": MediaLimits(max_coded_pixels=config.max_picture_pixels),
        }
        self._idle = [DecodeProcess(memory_bytes=config.decode_memory_bytes) for _ in range(config.decode_workers)]
        self._decode_turns = Turns(config.decode_workers)
        # A slow host holds a slot for long: one client never holds them all.
        self._fetch_turns = Turns(config.fetch_workers, per_client=max(1, config.fetch_workers // 2))
        self._decode_threads = ThreadPoolExecutor(config.decode_workers, thread_name_prefix="decode")
        self._fetch_threads = ThreadPoolExecutor(config.fetch_workers, thread_name_prefix="fetch")
        self._closing = threading.Event()

    async def start(self) -> None:
        """Start the decoders and wait until all are ready."""
        loop = asyncio.get_running_loop()
        starts = [loop.run_in_executor(self._decode_threads, decoder.start) for decoder in self._idle]
        await asyncio.gather(*starts)

    async def clip(self, source: Path | str, *, client: str) -> DecodedClip:
        """The clip in a file (`Path`: this server's own copy) or at the address that a request gives (`str`).

        Cancelling ends the work between two frames; the decoder lives on. `client` tells clients apart, who take
        turns. Raises `RequestError` where the clip cannot be had within the limits and the deadlines.
        """
        if isinstance(source, Path):
            # Opened before it waits: whoever made the file may remove it when the request is given up.
            return await self._decode(source.open("rb", buffering=0), client)
        url, config = source.strip(), self._config
        if is_http(url):
            check_url(url, config)  # before it waits for a turn

        def fetch_it(should_stop: Callable[[], bool]) -> BinaryIO:
            # A file in a folder may lie on a disk far away: opening it is fetching too.
            return fetch(url, config, should_stop=should_stop) if is_http(url) else open_file(url, config)

        return await self._decode(await self._in_turn(self._fetch_turns, self._fetch_threads, client, fetch_it), client)

    def close(self) -> None:
        """End the decoders and give up what is being fetched or decoded."""
        self._closing.set()
        self._decode_threads.shutdown()
        self._fetch_threads.shutdown()
        for decoder in self._idle:
            decoder.close()

    async def _decode(self, file: BinaryIO, client: str) -> DecodedClip:
        """Decode an open file, and close it when the decoder has it no longer."""

        def decode_it(should_stop: Callable[[], bool]) -> DecodedClip:
            decoder = self._idle.pop()
            try:
                return decoder.decode(
                    file,
                    name=_NAME,
                    deadline_s=self._config.decode_deadline_s,
                    cpu_s=self._config.decode_cpu_s,
                    should_stop=should_stop,
                    **self._options,
                )
            finally:
                self._idle.append(decoder)
                file.close()

        try:
            return await self._in_turn(
                self._decode_turns, self._decode_threads, client, decode_it, on_skipped=file.close
            )
        except MediaError as error:
            raise explain(error) from None

    async def _in_turn(
        self,
        turns: Turns,
        threads: ThreadPoolExecutor,
        client: str,
        work: Callable[[Callable[[], bool]], T],
        *,
        on_skipped: Callable[[], None] = lambda: None,
    ) -> T:
        """Run blocking work in a thread when it is the client's turn.

        The slot is free again when the work has ended, which after a cancellation is a little later. Work that
        never began is `on_skipped`.
        """
        try:
            await turns.take(client)
        except BaseException:
            on_skipped()
            raise
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(threads, work, lambda: gone.is_set() or self._closing.is_set())
        running.add_done_callback(lambda _: turns.give_back(client))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            gone.set()
            running.add_done_callback(_drop)
            raise


def _drop(running: asyncio.Future[Any]) -> None:
    """Take the result of work that nobody waits for: a file is closed, an error is not reported as unseen."""
    if not running.cancelled() and running.exception() is None and hasattr(running.result(), "close"):
        running.result().close()
