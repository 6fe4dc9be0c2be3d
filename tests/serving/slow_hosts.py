"""Hosts of clips that are not what a server hopes for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def raw_host(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback that does to every connection whatever `answer` says; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends: list[socket.socket] = []

        def talk(end: socket.socket) -> None:
            try:
                end.recv(65536)
                answer(end)
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

        def accept() -> None:
            while True:
                try:
                    end, _ = server.accept()
                except OSError:
                    return
                ends.append(end)
                threading.Thread(target=talk, args=(end,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for end in ends:
                end.close()


def drip(end: socket.socket) -> None:
    """A byte now and then, for ever."""
    while True:
        end.sendall(b"x")
        time.sleep(0.05)
