"""Decoding beside the model, in processes that can be killed.

A clip from outside can make a codec hang or crash. Neither may take the model with it, and a thread cannot
be stopped: so each replica has a few small Ray actors on its own node, and one that does not come back is
replaced.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError

if TYPE_CHECKING:
    from omni_platform.media.decode import DecodedClip

_CRASHED = "reading the video crashed the decoder; check that the file plays, and encode it again"


class DecodePool:
    """`decode_workers` decoders of one replica; a request holds one while its clip is fetched and decoded."""

    def __init__(self, config: ServeConfig, *, fps: float, max_frames: int) -> None:
        self._config, self._fps, self._max_frames = config, fps, max_frames
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the decoders and wait until all are ready."""
        await asyncio.gather(*(self._add() for _ in range(self._config.decode_workers)))

    async def clip(self, source: Path | str, *, client: str) -> DecodedClip:
        """The clip in an uploaded file or at an address; `RequestError` where it cannot be had within the limits."""
        decoder = await self._idle.get()
        came_back = False
        try:
            # Waiting for a free decoder does not count: that is the server's fault, not the clip's.
            clip = await asyncio.wait_for(decoder.clip.remote(source), self._deadline_s(str(source)))
            came_back = True
        except TimeoutError:
            raise self._too_slow() from None
        except RayActorError:
            raise RequestError(_CRASHED, code="media_undecodable", param="messages") from None
        finally:
            self._give_back(decoder, came_back)
        if isinstance(clip, RequestError):
            raise clip
        return clip

    def _deadline_s(self, url: str) -> float:
        over_http = url.strip().lower().startswith("http")
        return self._config.decode_deadline_s + (self._config.fetch_timeout_s if over_http else 0.0)

    def _too_slow(self) -> RequestError:
        return RequestError(
            f"decoding the video took longer than {self._config.decode_deadline_s:g} s; send it shorter "
            "or at a lower resolution",
            code="media_deadline",
            param="messages",
        )

    def _give_back(self, decoder: Any, came_back: bool) -> None:
        if came_back:
            self._idle.put_nowait(decoder)
            return
        # Late, crashed, or still at work for a client that has gone: a fresh one is clean in every case.
        ray.kill(decoder)
        task = asyncio.create_task(self._add())
        self._starting.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._starting.discard)

    async def _add(self) -> None:
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Decoder)
        decoder = actor.remote(self._config, self._fps, self._max_frames)
        await decoder.ready.remote()
        self._idle.put_nowait(decoder)


class _Decoder:
    """The actor: one clip at a time."""

    def __init__(self, config: ServeConfig, fps: float, max_frames: int) -> None:
        # Here and not above: codecs are for the decoders' processes only.
        from omni_serving.inputs import fetch_clip

        self._fetch = lambda source: fetch_clip(source, config, fps=fps, max_frames=max_frames)

    def ready(self) -> int:
        """The process id, once the decoder can work."""
        return os.getpid()

    def clip(self, source: Path | str) -> DecodedClip | RequestError:
        try:
            return self._fetch(source)
        except RequestError as error:
            return error  # an answer to the client, and no fault of the actor
