"""Slots that clients take in turns: who asks for much waits for itself, not in front of the others."""

from __future__ import annotations

import asyncio
from collections import Counter, deque


class Turns:
    """A number of slots on one event loop.

    A free slot goes to the waiting client that holds the fewest, and among equals to the one whose last turn is
    longest ago: a client with one request waits for at most one request of each other client.
    """

    def __init__(self, slots: int, *, per_client: int | None = None) -> None:
        """`per_client` is the most that one client may hold; None = all of them."""
        self._free = slots
        self._per_client = per_client or slots
        self._held: Counter[str] = Counter()
        self._last_turn: dict[str, int] = {}
        self._turn = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, client: str) -> None:
        """Wait for a slot; whoever got one owes a `give_back`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the slot came at the same time
                self.give_back(client)
            else:
                self._forget(client, place)
            raise

    def give_back(self, client: str) -> None:
        """Return a slot."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
            if client not in self._waiting:
                del self._last_turn[client]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free:
            # Equals who never had a turn go in the order of their arrival.
            able = [client for client in self._waiting if self._held[client] < self._per_client]
            if not able:
                return
            client = min(able, key=lambda name: (self._held[name], self._last_turn.get(name, 0)))
            place = self._waiting[client].popleft()
            if not self._waiting[client]:
                del self._waiting[client]
            if place.done():  # given up, and its task has not run yet
                continue
            self._turn += 1
            self._last_turn[client] = self._turn
            self._held[client] += 1
            self._free -= 1
            place.set_result(None)

    def _forget(self, client: str, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(client)
        if places is None:
            return
        if place in places:
            places.remove(place)
        if not places:
            del self._waiting[client]
            if not self._held[client]:
                self._last_turn.pop(client, None)
