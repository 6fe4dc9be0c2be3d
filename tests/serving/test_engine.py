"""Requests share model calls, and none harms another."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from omni_serving.engine import Engine
from omni_serving.errors import RequestError
from omni_serving.reading import Limits

SHORT, LONG = Limits(max_new_tokens=8, max_phases=1), Limits(max_new_tokens=64, max_phases=4)


class Recorder:
    """A reasoner that notes its calls; `gate` holds it while a test fills the queue."""

    fps, max_frames, method_name = 2.0, 16, "recorder"
    max_positions, num_slots = 4096, 0

    def prompt_positions(self, question: str, options: tuple[str, ...]) -> int:
        return 0

    def clip_positions(self, **shape: int) -> int:
        return 0

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.limits: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, asks: list[Any], *, max_new_tokens: int, max_phases: int) -> list[Any]:
        assert self.gate.wait(30)
        self.calls.append(asks)
        self.limits.append((max_new_tokens, max_phases))
        self.threads.add(threading.current_thread().name)
        if "thin" in asks:
            raise ValueError("the picture is too thin; crop it")
        if "bad" in asks:
            raise RuntimeError("cannot answer this")
        return [SimpleNamespace(text=f"re {ask}") for ask in asks if ask != "lost"]


def engine_for(reasoner: Recorder, **changes: Any) -> Engine:
    return Engine(reasoner, **{"max_batch_size": 4, "batch_wait_s": 0.0, "max_requests": 64, **changes})


def submit(engine: Engine, ask: Any, limits: Limits = SHORT) -> asyncio.Future:
    with engine.place():
        return engine.submit(ask, limits)


async def hold(engine: Engine, reasoner: Recorder) -> asyncio.Future:
    """One request that has the model to itself until the gate opens."""
    reasoner.gate.clear()
    first = submit(engine, "first")
    while engine._waiting:
        await asyncio.sleep(0)
    return first


def test_requests_that_wait_go_together_in_order() -> None:
    async def scenario() -> None:
        reasoner = Recorder()
        engine = engine_for(reasoner)
        first = await hold(engine, reasoner)
        others = [submit(engine, i) for i in range(6)]
        reasoner.gate.set()
        replies = await asyncio.gather(first, *others)
        assert reasoner.calls == [["first"], [0, 1, 2, 3], [4, 5]]
        assert [reply.text for reply in replies] == ["re first", *(f"re {i}" for i in range(6))]
        assert len(reasoner.threads) == 1 and threading.current_thread().name not in reasoner.threads

    asyncio.run(scenario())


def test_only_equal_limits_share_a_call_and_the_oldest_leads() -> None:
    async def scenario() -> None:
        reasoner = Recorder()
        engine = engine_for(reasoner)
        first = await hold(engine, reasoner)
        others = [submit(engine, i, LONG if i % 2 else SHORT) for i in range(4)]
        reasoner.gate.set()
        await asyncio.gather(first, *others)
        assert reasoner.calls == [["first"], [0, 2], [1, 3]]
        assert reasoner.limits == [(8, 1), (8, 1), (64, 4)]

    asyncio.run(scenario())


def test_a_client_that_left_is_not_answered_and_frees_its_place() -> None:
    async def scenario() -> None:
        reasoner = Recorder()
        engine = engine_for(reasoner)
        first = await hold(engine, reasoner)
        gone, stays = submit(engine, "gone"), submit(engine, "stays")
        gone.cancel()
        first.cancel()  # in the middle of its call
        await asyncio.sleep(0)
        assert engine.load()["open_requests"] == 1
        reasoner.gate.set()
        assert (await stays).text == "re stays"
        assert reasoner.calls == [["first"], ["stays"]]

    asyncio.run(scenario())


def test_a_request_the_model_cannot_take_does_not_fail_its_neighbours() -> None:
    async def scenario() -> None:
        reasoner = Recorder()
        engine = engine_for(reasoner)
        first = await hold(engine, reasoner)
        others = [submit(engine, ask) for ask in ("a", "bad", "b")]
        reasoner.gate.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [getattr(r, "text", r.__class__.__name__) for r in results] == [
            "re first",
            "re a",
            "RuntimeError",
            "re b",
        ]
        assert (await submit(engine, "later")).text == "re later"
        engine.check_alive()

    asyncio.run(scenario())


def test_what_the_model_room_refuses_is_the_clients_to_mend() -> None:
    async def scenario() -> None:
        with pytest.raises(RequestError, match="crop it") as caught:
            await submit(engine_for(Recorder()), "thin")
        assert (caught.value.status, caught.value.code) == (400, "not_answerable")

    asyncio.run(scenario())


def test_a_model_that_loses_a_request_is_found_out() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="0 replies to 1 requests"):
            await submit(engine_for(Recorder()), "lost")

    asyncio.run(scenario())


def test_a_full_house_refuses_and_recovers() -> None:
    async def scenario() -> None:
        reasoner = Recorder()
        engine = engine_for(reasoner, max_requests=3)
        first = await hold(engine, reasoner)
        second = submit(engine, "second")
        with engine.place():  # a third, whose clip is still being decoded
            with pytest.raises(RequestError, match="full") as caught, engine.place():
                pass
            assert caught.value.status == 429
            assert engine.load()["open_requests"] == 3
        reasoner.gate.set()
        await asyncio.gather(first, second)
        await asyncio.sleep(0)
        assert engine.load()["open_requests"] == 0

    asyncio.run(scenario())
