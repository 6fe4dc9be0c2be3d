"""Who gets the next slot."""

from __future__ import annotations

import asyncio

import pytest

from omni_serving.turns import Turns


async def _queue(turns: Turns, clients: list[str], order: list[str]) -> list[asyncio.Task[None]]:
    """Ask for a slot for each client, in this order; each keeps its slot until it is given back."""

    async def ask(client: str) -> None:
        await turns.take(client)
        order.append(client)

    tasks = [asyncio.create_task(ask(client)) for client in clients]
    await _settle()
    return tasks


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_single_request_waits_for_one_of_the_many_before_it() -> None:
    async def run() -> list[str]:
        turns, order = Turns(1), []
        await _queue(turns, ["many"] * 50 + ["single"], order)
        for _ in range(50):
            turns.give_back(order[-1])
            await _settle()
        return order

    order = asyncio.run(run())
    assert order[:3] == ["many", "single", "many"] and len(order) == 51


def test_clients_go_round_whatever_they_queue() -> None:
    async def run() -> list[str]:
        turns, order = Turns(1), []
        await _queue(turns, ["a"] * 3 + ["b"] * 2 + ["c"] * 2, order)
        for _ in range(6):
            turns.give_back(order[-1])
            await _settle()
        return order

    assert asyncio.run(run()) == ["a", "b", "c", "a", "b", "c", "a"]


def test_one_client_never_holds_more_than_its_share() -> None:
    async def run() -> tuple[list[str], list[str]]:
        turns, order = Turns(4, per_client=2), []
        await _queue(turns, ["a"] * 5, order)
        before = list(order)
        await _queue(turns, ["b"], order)
        return before, order

    before, after = asyncio.run(run())
    assert before == ["a", "a"] and after == ["a", "a", "b"]


@pytest.mark.parametrize("when", ["before", "just before", "just after"])
def test_a_request_that_is_given_up_leaves_its_place(when: str) -> None:
    async def run() -> list[str]:
        turns, order = Turns(1), []
        await turns.take("first")
        (leaving,) = await _queue(turns, ["leaves"], order)
        await _queue(turns, ["stays"], order)
        if when == "just after":
            turns.give_back("first")
            leaving.cancel()
        else:
            leaving.cancel()
            if when == "before":
                await _settle()
            turns.give_back("first")
        await _settle()
        return order

    assert asyncio.run(run()) == ["stays"]
