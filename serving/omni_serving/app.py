"""The Ray Serve application: an OpenAI-compatible endpoint over one reasoner.

    GET  /health               200 once the model is loaded
    GET  /v1/models            the model that is served
    POST /v1/chat/completions  a question about a clip; with `stream: true` as server-sent events

One deployment on purpose: a hop between deployments costs about a third of the throughput.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from omni_model.reason import Ask, load_reasoner
from omni_platform.config import load_config
from omni_serving.api import create_api
from omni_serving.config import ServeConfig
from omni_serving.decoding import DecodePool
from omni_serving.engine import Engine, Reasoner
from omni_serving.protocol import ChatRequest
from omni_serving.reading import check_model, read_limits, read_prompt

if TYPE_CHECKING:
    from fastapi import FastAPI

    from omni_model.reason import Reply

Load = Callable[[Path], Reasoner]
_HEADROOM = 16
_MAX_QUEUED = 256


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
        # Above our own bound, so that it is we who answer a full house with a 429, and /health still gets in.
        max_ongoing_requests=config.max_requests + _HEADROOM,
        max_queued_requests=_MAX_QUEUED,
        ray_actor_options={"num_cpus": config.num_cpus_per_replica, "num_gpus": config.num_gpus_per_replica},
    )
    return deploy(serve.ingress()(ReasonerService)).bind(config, load)


class ReasonerService:
    """One replica: the model, its decoders, its queue."""

    async def __init__(self, config: ServeConfig, load: Load) -> None:
        self.config = config
        reasoner = await asyncio.to_thread(lambda: load(_model_folder(config)))
        self.method_name = reasoner.method_name
        self._engine = Engine(
            reasoner,
            max_batch_size=config.max_batch_size,
            batch_wait_s=config.batch_wait_s,
            max_requests=config.max_requests,
        )
        self._decoders = DecodePool(config, fps=reasoner.fps, max_frames=reasoner.max_frames)
        await self._decoders.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self)

    def check_health(self) -> None:
        """Called by Ray Serve; an exception replaces the replica."""
        self._engine.check_alive()

    def load(self) -> dict[str, int]:
        """How busy this replica is."""
        return self._engine.load()

    async def begin(self, request: ChatRequest) -> asyncio.Future[Reply]:
        """Fetch the clip and queue the question; `RequestError` where that cannot be."""
        check_model(request, self.config.model_name)
        limits, prompt = read_limits(request, self.config), read_prompt(request)
        with self._engine.room():
            clip = await self._decoders.clip(prompt.video_url)
            ask = Ask(
                question=prompt.question,
                frames=clip.frames,
                sample_fps=clip.sample_fps,
                waveform=clip.waveform,
                options=prompt.options,
            )
            return self._engine.submit(ask, limits)


def _model_folder(config: ServeConfig) -> Path:
    if Path(config.model).is_dir():
        return Path(config.model)
    # Only a registry needs MLflow, which takes seconds to import.
    from omni_platform.tracking import resolve_model

    return resolve_model(config.model, tracking_uri=config.tracking_uri)


def _read(args: Mapping[str, Any]) -> ServeConfig:
    return load_config(ServeConfig, None, [f"{key}={json.dumps(value)}" for key, value in args.items()])
