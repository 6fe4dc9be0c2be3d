"""The Ray Serve application: an OpenAI-compatible endpoint over one reasoner.

    GET  /health               200 while the model can answer, at capacity too; what a load balancer should ask
    GET  /v1/models            the model that is served
    POST /v1/chat/completions  a question about a clip; with `stream: true` as server-sent events

One deployment on purpose: a hop between deployments costs about a third of the throughput.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from omni_model.reason import Ask, load_reasoner
from omni_platform.config import load_config
from omni_serving.access import read_keys
from omni_serving.api import create_api
from omni_serving.budget import Budget
from omni_serving.config import ServeConfig
from omni_serving.decoding import DecodePool
from omni_serving.engine import Engine, Reasoner
from omni_serving.model_source import model_folder
from omni_serving.protocol import ChatRequest
from omni_serving.reading import check_model, clip_source, read_limits, read_prompt
from omni_serving.uploads import Upload, Uploads

if TYPE_CHECKING:
    from fastapi import FastAPI

    from omni_model.reason import Reply

logger = logging.getLogger("ray.serve")
Load = Callable[[Path], Reasoner]
_MORE_THAN_ENOUGH = 4096
"""Requests beyond our own bounds that Ray Serve lets into a replica, to be refused there, and /health among them."""


def build_app(args: ServeConfig | Mapping[str, Any]) -> Application:
    """The application of a `ServeConfig`, or of its fields as plain data (the `args` of serveConfigV2).

    Raises `ConfigError` naming the key that does not fit.
    """
    config = args if isinstance(args, ServeConfig) else _read(args)
    return bind_app(config, functools.partial(load_reasoner, device=config.device))


def bind_app(config: ServeConfig, load: Load) -> Application:
    """The same with a given loader: `load(folder)` is called once in each replica."""
    deploy = serve.deployment(
        name="reasoner",
        num_replicas=config.num_replicas,
        # Far above our own bounds: these answer with a 429 that clients understand, and /health never waits in a queue.
        max_ongoing_requests=config.max_requests + config.max_uploads + _MORE_THAN_ENOUGH,
        max_queued_requests=_MORE_THAN_ENOUGH,
        ray_actor_options={"num_cpus": config.num_cpus_per_replica, "num_gpus": config.num_gpus_per_replica},
    )
    return deploy(serve.ingress()(ReasonerService)).bind(config, load)


class ReasonerService:
    """One replica: the model, its decoders, its queue."""

    async def __init__(self, config: ServeConfig, load: Load) -> None:
        self.config = config
        self._keys = read_keys(config)
        self.uploads = Uploads(config)
        reasoner = await asyncio.to_thread(lambda: load(model_folder(config)))
        self.method_name = reasoner.method_name
        self._engine = Engine(
            reasoner,
            max_batch_size=config.max_batch_size,
            batch_wait_s=config.batch_wait_s,
            max_requests=config.max_requests,
        )
        self._budget = Budget(reasoner, config)
        _warn_of_budget(self._budget, config)
        self._decoders = DecodePool(config, fps=reasoner.fps, max_frames=reasoner.max_frames)
        await self._decoders.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self, self._keys)

    def check_health(self) -> None:
        """Called by Ray Serve; an exception replaces the replica."""
        self._engine.check_alive()

    def load(self) -> dict[str, int]:
        """How busy this replica is."""
        config = self.config
        bounds = {"max_uploads": config.max_uploads, "max_model_len": self._budget.max_model_len}
        return {**self._engine.load(), **self.uploads.load(), **bounds}

    def check_capacity(self) -> None:
        """`RequestError` 429 where no request can be taken now."""
        self._engine.check_capacity()

    async def begin(self, request: ChatRequest, upload: Upload, client: str) -> asyncio.Future[Reply]:
        """Fetch the clip and queue the question; `RequestError` where that cannot be."""
        check_model(request, self.config.model_name)
        limits, prompt = read_limits(request, self.config), read_prompt(request)
        source = clip_source(prompt, upload)
        with self._engine.place():
            positions = await asyncio.to_thread(self._budget.check_text, prompt, limits)
            clip = await self._decoders.clip(source, client=client)
            self._budget.check_clip(positions, clip, limits)
            ask = Ask(
                question=prompt.question,
                frames=clip.frames,
                sample_fps=clip.sample_fps,
                waveform=clip.waveform,
                options=prompt.options,
            )
            return self._engine.submit(ask, limits, client=client)


def _warn_of_budget(budget: Budget, config: ServeConfig) -> None:
    if budget.largest_clip > budget.max_model_len:
        logger.warning(
            "a clip of max_duration_s=%g can take %d positions and max_model_len is %d: longer clips will be refused",
            *(config.max_duration_s, budget.largest_clip, budget.max_model_len),
        )


def _read(args: Mapping[str, Any]) -> ServeConfig:
    return load_config(ServeConfig, None, [f"{key}={json.dumps(value)}" for key, value in args.items()])
