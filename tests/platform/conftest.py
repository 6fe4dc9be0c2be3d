"""Clips for the data rooms: a small film rendered once, real clips where they are, and one local Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from omni_platform.media.film_folder import FilmConfig, write_film
from omni_platform.runtime import start_ray
from omni_platform.schema import Sample, SegmentFeatures

sys.path.insert(0, str(Path(__file__).parent))  # for what test files share, such as `film_cells`
import stored_features
from small_s3 import small_s3

MEDIA = Path(__file__).parents[3] / "shared" / "media"


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, four questions each, and one broken clip of each kind."""
    folder = tmp_path_factory.mktemp("film") / "film"
    families = ("colour_at_tone", "tone_at_colour", "colour_after_tone", "colours_and_tones")
    config = FilmConfig(
        output_dir=str(folder),
        seed=5,
        num_clips=6,
        families=families,
        bad_clips=4,
        side_px=64,
        num_processes=1,
    )
    write_film(config)
    return folder


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://` URI of a bucket on a server of the test's own; parameter `no conditions`: it ignores `If-None-Match`."""
    with small_s3(conditions=getattr(request, "param", "") != "no conditions") as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket"


@pytest.fixture
def real_clip() -> Callable[[str], Path]:
    """A clip of the real world by name; the test is skipped where they are not at hand."""

    def find(name: str) -> Path:
        if not (MEDIA / name).is_file():
            pytest.skip(f"the real clip {name} is not in ../shared/media")
        return MEDIA / name

    return find


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own, with a GPU in name: whoever asks for a share gets it, and nothing computes there."""
    start_ray(num_cpus=2, num_gpus=1, object_store_memory_bytes=200_000_000)
    yield
    ray.shutdown()


class StubEncoder:
    """Stands for a model: the two visual features of a span are its mean picture, the audio one its mean loudness."""

    dim = 3

    def __init__(self, fingerprint: str = "stub", refuse: str = "", crash_at: int = -1, die: str = "") -> None:
        """`refuse` is a span such as "0-1"; `crash_at` a number of calls; `die` a file that says: not again."""
        self.fingerprint = fingerprint
        self._refuse = refuse
        self._crash_at = crash_at
        self._die = die
        self._calls = 0

    def prepare_frames(self, frames: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(frames[:, ::2, ::2])

    def length(self, sample: Sample, *, frames: np.ndarray, sample_fps: float, waveform: np.ndarray | None) -> int:
        return len(frames) + len(sample.question)

    def segments(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> list[SegmentFeatures]:
        blocks = self.features(frames=frames, sample_fps=sample_fps, waveform=waveform, spans=spans)
        return [stored_features.segment_of(block_KD, num_visual=2) for block_KD in blocks]

    def features(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> np.ndarray:
        self._calls += 1
        if self._calls == self._crash_at:
            raise RuntimeError("the encoder is broken")
        if self._die and self._calls == 3 and not os.path.exists(self._die):
            Path(self._die).touch()
            os._exit(1)
        anchors_SKD = np.zeros((len(spans), 3, 3), np.float32)
        for s, (start_s, end_s) in enumerate(spans):
            if self._refuse and f"{start_s:g}-{end_s:g}" == self._refuse:
                raise ValueError("this span is not to its liking")
            first, last = int(start_s * sample_fps), int(end_s * sample_fps)
            anchors_SKD[s, :2] = frames[first : max(last, first + 1)].mean((0, 1, 2))
            if waveform is not None:
                anchors_SKD[s, 2] = np.abs(waveform[int(start_s * 16_000) : int(end_s * 16_000)]).mean()
        return anchors_SKD


# Workers cannot import a test's conftest: they get its functions and classes by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[StubEncoder.__module__])
ray.cloudpickle.register_pickle_by_value(stored_features)


@pytest.fixture(scope="session")
def stub_encoder() -> type[StubEncoder]:
    return StubEncoder
