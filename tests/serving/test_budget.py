"""Positions are counted before the work that they cost, with the shipped toy model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from omni_model.folder import TINY_BASE
from omni_model.reason import Ask, Reasoner, load_reasoner
from omni_serving.app import build_app
from omni_serving.budget import Budget
from omni_serving.config import ServeConfig
from omni_serving.deploy import deployed
from omni_serving.errors import RequestError
from omni_serving.reading import Limits, Prompt

from .conftest import Client, free_port, peak_memory

LIMITS = Limits(max_new_tokens=16, max_phases=2)


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return load_reasoner(TINY_BASE, device="cpu")


def budget(reasoner: Any, **config: Any) -> Budget:
    return Budget(reasoner, ServeConfig(**{"model": "m", "max_new_tokens": 16, "max_phases": 2, **config}))


def prompt(question: str, *options: str) -> Prompt:
    return Prompt(question=question, video_url="clip.mp4", options=options)


@pytest.mark.parametrize("seed", range(12))
def test_the_count_is_the_length_of_the_prompt(reasoner, seed) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (int(rng.integers(1, 20)), *rng.integers(30, 200, 2), 3), np.uint8)
    # Whole mel frames: at the end of a sound one token more or less is a matter of the features.
    waveform = None if seed % 3 == 0 else rng.normal(size=160 * int(rng.integers(4, 900))).astype(np.float32)
    ask = Ask(question="Which colour is it? " * seed or "Q", frames=frames, sample_fps=2.0, waveform=waveform)
    num_frames, height, width = frames.shape[:3]
    clip = reasoner.clip_positions(
        num_frames=num_frames, height=height, width=width, num_samples=0 if waveform is None else len(waveform)
    )
    assert reasoner.prompt_positions(ask.question, ask.options) + clip == len(reasoner.plan(ask))


def test_the_model_names_the_most_and_the_operator_less(reasoner) -> None:
    assert reasoner.max_positions == 4096
    assert budget(reasoner).max_model_len == 4096
    assert budget(reasoner, max_model_len=1000).max_model_len == 1000
    with pytest.raises(ValueError, match="the model has 4096 positions"):
        budget(reasoner, max_model_len=4097)
    with pytest.raises(ValueError, match="leaves no room for a question"):
        budget(reasoner, max_model_len=20)


def test_text_is_counted_with_what_the_answer_takes(reasoner) -> None:
    fits = prompt("Which colour?")
    positions = reasoner.prompt_positions(fits.question, ())
    smallest = reasoner.clip_positions(num_frames=1, height=28, width=28, num_samples=0)
    answer = 16 + 2 * (reasoner.num_slots + 1 if reasoner.num_slots else 0)
    exact = budget(reasoner, max_model_len=positions + smallest + answer)
    assert exact.check_text(fits, LIMITS) == positions
    with pytest.raises(RequestError) as caught:
        exact.check_text(prompt("Which colour??"), LIMITS)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert f"the prompt has {positions + 1:,} positions" in caught.value.message
    assert f"allows {positions:,} of" in caught.value.message
    # Fewer new tokens leave more room.
    assert exact.check_text(prompt("Which colour??"), Limits(max_new_tokens=15, max_phases=2)) == positions + 1


def test_latent_slots_count(reasoner) -> None:
    with_slots = SimpleNamespace(
        **{name: getattr(reasoner, name) for name in ("fps", "max_frames", "max_positions")},
        num_slots=6,
        prompt_positions=lambda question, options: 100,
        clip_positions=lambda **shape: 10,
    )
    checked = budget(with_slots, max_model_len=100 + 10 + 16 + 2 * 7)
    assert checked.check_text(prompt("Q"), LIMITS) == 100
    with pytest.raises(RequestError, match=r"16 new tokens, 21 latent slots .* allows 93 of 140"):
        checked.check_text(prompt("Q"), Limits(max_new_tokens=16, max_phases=3))


def test_a_clip_is_counted_once_it_is_decoded(reasoner) -> None:
    clip: Any = SimpleNamespace(frames=np.zeros((16, 64, 64, 3), np.uint8), waveform=np.zeros(160_000, np.float32))
    positions = reasoner.clip_positions(num_frames=16, height=64, width=64, num_samples=160_000)
    assert positions == 8 * 4 + 250 + 4  # two frames to four tokens, 25 tokens of sound a second, markers
    exact = budget(reasoner, max_model_len=50 + positions + 16)
    exact.check_clip(50, clip, LIMITS)
    with pytest.raises(RequestError, match=rf"has {51 + positions} positions \({positions} of them the clip's\)"):
        exact.check_clip(51, clip, LIMITS)


def test_text_beyond_any_budget_is_not_even_tokenised() -> None:
    def fail(*args: Any) -> int:
        raise AssertionError("this text was to be refused by its length")

    model = SimpleNamespace(
        fps=2.0, max_frames=16, max_positions=4096, num_slots=0, prompt_positions=fail, clip_positions=lambda **shape: 4
    )
    with pytest.raises(RequestError, match="131,073 characters"):
        budget(model).check_text(prompt("x" * 131_072, "y"), LIMITS)


@pytest.fixture(scope="module")
def toy(local_ray: None, film) -> Iterator[Client]:
    config = ServeConfig(
        model=str(TINY_BASE), port=free_port(), device="cpu", allowed_media_dirs=(str(film.folder),), decode_workers=1
    )
    with deployed(config, build_app(config)) as url:
        yield Client(url)


def test_a_question_of_100000_characters_is_refused_at_once_and_memory_stays_flat(toy, film) -> None:
    assert toy.ask(film.clip)[0] == 200
    replica = toy.replica()
    question = "Which colour is it? " * 5000
    assert len(question) == 100_000
    toy.ask(film.clip, question)
    before = replica.memory_info().rss
    with peak_memory(replica) as peak:
        for _ in range(5):
            started = time.monotonic()
            status, reply = toy.ask(film.clip, question)
            assert time.monotonic() - started < 1
            assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")
            assert reply["error"]["param"] == "messages"
            assert "positions without its clip" in reply["error"]["message"]
            assert "of 4,096" in reply["error"]["message"]
    assert peak[0] - before < 64 << 20
    assert isinstance(replica, psutil.Process) and toy.ask(film.clip)[0] == 200
