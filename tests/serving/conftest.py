"""A reasoner that answers by really looking and listening, served by a real Ray Serve on loopback."""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from omni_model.reason import Ask, Moment, Phase, Reply
from omni_platform.media.scene import COLOURS_RGB, Scene, make_scene
from omni_platform.media.synth import write_mp4
from omni_platform.runtime import start_ray
from omni_serving.app import bind_app
from omni_serving.config import ServeConfig
from omni_serving.deploy import deployed
from omni_serving.proxy import PROXY_ENV

# For what test files share, here and with those of the media package.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "platform")]

# Workers cannot import a test module: what is defined here travels whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class ColourReasoner:
    """Names the colour of the first picture; `wait for PATH` is answered once that file is there."""

    fps, max_frames, method_name = 2.0, 16, "colours"
    max_positions, num_slots = 4096, 6

    def prompt_positions(self, question: str, options: tuple[str, ...]) -> int:
        return 10 + len(question.split()) + sum(len(option.split()) for option in options)

    def clip_positions(self, *, num_frames: int, height: int, width: int, num_samples: int) -> int:
        return 4 * num_frames + num_samples // 640

    def answer(self, asks: list[Ask], *, max_new_tokens: int, max_phases: int) -> list[Reply]:
        for ask in asks:
            if ask.question == "fail":
                raise RuntimeError("this question breaks the model")
            if ask.question.startswith("wait for "):
                _wait_until(Path(ask.question.removeprefix("wait for ")).exists)
        return [_reply(ask, len(asks), max_phases) for ask in asks]


def load_colours(folder: Path) -> ColourReasoner:
    assert folder.is_dir()
    return ColourReasoner()


def _reply(ask: Ask, batch_size: int, max_phases: int) -> Reply:
    colour = _first_colour(ask.frames)
    sound_s = 0.0 if ask.waveform is None else len(ask.waveform) / 16_000
    moments = (
        Moment(modality="visual", start_s=0.0, end_s=1.0, similarity=0.75),
        Moment(modality="audio", start_s=2.0, end_s=3.0, similarity=0.5),
    )
    phase = Phase(position=3, num_visual=4, num_audio=2, moments=moments)
    text = f"{len(ask.frames)} frames, {sound_s:g} s of sound, batch of {batch_size}. Answer: {colour}"
    return Reply(
        text=text,
        answer=colour,
        phases=(phase,)[:max_phases],
        prompt_tokens=40,
        completion_tokens=7,
        latent_steps=6,
        finish_reason="stop",
    )


def _first_colour(frames: np.ndarray) -> str:
    """The film's colour nearest to what stands out from the backdrop."""
    pixels = frames[0].reshape(-1, 3).astype(float)
    distance = np.abs(pixels - np.median(pixels, 0)).max(1)
    shown = np.median(pixels[distance >= np.quantile(distance, 0.97)], 0)
    return min(COLOURS_RGB, key=lambda name: float(np.abs(shown - COLOURS_RGB[name]).sum()))


def _wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def peak_memory(process: psutil.Process) -> Iterator[list[int]]:
    """The highest resident size seen within the block, in bytes."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@dataclass(frozen=True)
class Film:
    """A rendered scene in the folder that the server may open."""

    folder: Path
    clip: Path
    scene: Scene

    @property
    def as_data_uri(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.clip.read_bytes()).decode()


@dataclass(frozen=True)
class Client:
    """A plain HTTP client of a server: status and decoded JSON."""

    url: str

    def get(self, path: str) -> tuple[int, Any]:
        return self._send(urllib.request.Request(self.url + path))

    def post(self, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return self._send(request)

    def replica(self) -> psutil.Process:
        """The process of the replica, among those that this test's Ray has started."""
        driver = psutil.Process()
        [replica] = [child for child in driver.children(recursive=True) if "ServeReplica" in child.name()]
        return replica

    def ask(self, video: str | Path, question: str = "Which colour is first?", **more: Any) -> tuple[int, Any]:
        return self.post(self.body(video, question, **more))

    def body(self, video: str | Path, question: str = "Which colour is first?", **more: Any) -> dict:
        part = {"type": "video_url", "video_url": {"url": str(video)}}
        content = [{"type": "text", "text": question}, part]
        return {"messages": [{"role": "user", "content": content}], **more}

    def wait_for_load(self, **counts: int) -> None:
        _wait_until(lambda: counts.items() <= self.get("/health")[1].items())

    def _send(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    folder = tmp_path_factory.mktemp("allowed")
    scene = make_scene(seed=5, index=0)
    write_mp4(scene, folder / "clip.mp4")
    return Film(folder, folder / "clip.mp4", scene)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    start_ray(num_cpus=2, object_store_memory_bytes=200_000_000, env_vars=PROXY_ENV)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def server(local_ray: None, film: Film, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The application with the reasoner above, 17 requests at most, eight to a call."""
    config = ServeConfig(
        model=str(tmp_path_factory.mktemp("colours")),
        served_model_name="colours",
        port=free_port(),
        allowed_media_dirs=(str(film.folder),),
        max_batch_size=8,
        max_requests=17,
        max_video_bytes=1_000_000,
        max_duration_s=10.0,
    )
    with deployed(config, bind_app(config, load_colours)) as url:
        yield Client(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
