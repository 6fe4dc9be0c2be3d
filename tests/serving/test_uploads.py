"""Clients that send slowly, never, too much or from the wrong place, against a real Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from omni_serving.app import bind_app
from omni_serving.config import ServeConfig
from omni_serving.deploy import deployed
from omni_serving.errors import RequestError
from omni_serving.uploads import Body, Uploads

from .conftest import Client, free_port, load_colours, peak_memory

MIB = 1 << 20
HEADERS = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def uploads_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(local_ray: None, film, uploads_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    config = ServeConfig(
        model=str(tmp_path_factory.mktemp("colours")),
        served_model_name="colours",
        port=free_port(),
        allowed_media_dirs=(str(film.folder),),
        max_requests=17,
        max_uploads=400,
        max_video_bytes=64 * MIB,
        max_upload_bytes_in_flight=1024 * MIB,
        body_idle_timeout_s=3.0,
        body_timeout_s=60.0,
        upload_dir=str(uploads_dir),
        decode_workers=1,
    )
    with deployed(config, bind_app(config, load_colours)) as url:
        yield Client(url)


@contextlib.contextmanager
def connections(server: Client, count: int, begin: str) -> Iterator[list[socket.socket]]:
    """`count` connections on which so much of a request has been sent, and no more."""
    parts = urlsplit(server.url)
    opened = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((parts.hostname, parts.port), timeout=30))
            opened[-1].sendall(begin.encode())
        yield opened
    finally:
        for connection in opened:
            connection.close()


def read_reply(connection: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of a reply after which the server closes."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)


def answers_within_2_s(server: Client, clip: Path) -> None:
    """The quickest of three: what else the machine does meanwhile is no fault of the server."""

    def seconds(ask: Callable[[], tuple[int, ...]]) -> float:
        started = time.monotonic()
        assert ask()[0] == 200
        return time.monotonic() - started

    assert min(seconds(lambda: server.get("/health")) for _ in range(3)) < 2
    assert min(seconds(lambda: server.ask(clip)) for _ in range(3)) < 2


def test_half_sent_requests_by_the_hundred_hold_up_nobody(server, film) -> None:
    server.ask(film.clip)  # the first call of all is slower
    half_headers = HEADERS[:60]
    half_sent = HEADERS + "Content-Length: 1000\r\n\r\n{"
    with connections(server, 150, half_headers) as headless, connections(server, 300, half_sent) as waiting:
        server.wait_for_load(open_uploads=300)
        answers_within_2_s(server, film.clip)
        # Twice as many as may upload at once: those that have stopped sending make room.
        with connections(server, 300, half_sent):
            answers_within_2_s(server, film.clip)
            server.wait_for_load(open_uploads=0)
        answers_within_2_s(server, film.clip)
        for connection in headless[:3]:  # closed without a word: there was no request
            assert connection.recv(1) == b""
        for connection in waiting[:3]:
            status, headers, body = read_reply(connection)
            assert (status, body["error"]["code"]) == (408, "body_timeout")
            assert headers["connection"] == "close"


def test_bodies_are_on_disk_and_released(server, film, uploads_dir) -> None:
    """12 bodies of 40 MiB at once: the replica's memory grows by less than two of them, and comes back."""
    process = server.replica()
    clip = "A" * (40 * MIB // 4 * 4)
    body = json.dumps(server.body("data:video/mp4;base64," + clip)).encode()
    server.post(body)  # what the first such body needs is needed once
    before = process.memory_info().rss
    with peak_memory(process) as peak, ThreadPoolExecutor(12) as clients:
        replies = list(clients.map(lambda _: server.post(body), range(12)))
    assert {(status, reply["error"]["code"]) for status, reply in replies} == {(400, "media_container")}
    assert peak[0] - before < 2 * len(body)
    assert process.memory_info().rss - before < len(body)
    assert uploaded(uploads_dir) == []
    server.wait_for_load(upload_bytes=0, open_uploads=0)


def uploaded(folder: Path) -> list[Path]:
    return sorted(folder.glob("replica-*/upload-*"))


class Pieces:
    """An ASGI `receive` that gives the pieces put into it, and then nothing more, ever."""

    def __init__(self, *pieces: bytes, gap_s: float = 0.0) -> None:
        self._pieces, self._gap_s = list(pieces), gap_s

    async def __call__(self) -> dict:
        if not self._pieces:
            await asyncio.Event().wait()
        await asyncio.sleep(self._gap_s)
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": True}


def uploads(folder: Path, **config: Any) -> Uploads:
    return Uploads(ServeConfig(model="m", upload_dir=str(folder), **config))


async def refused(uploads: Uploads, receive: Pieces) -> tuple[int, str, float]:
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        async with uploads.receive(Body(receive), None):
            raise AssertionError("the body had no end")
    return caught.value.status, caught.value.code, time.monotonic() - started


def test_a_body_that_stops_and_one_that_drips_have_an_end(tmp_path) -> None:
    async def scenario() -> None:
        patient = uploads(tmp_path, body_idle_timeout_s=0.5, body_timeout_s=2.0)
        status, code, seconds = await refused(patient, Pieces(b"{"))
        assert (status, code) == (408, "body_timeout") and 0.4 < seconds < 1.5
        status, code, seconds = await refused(patient, Pieces(*[b" "] * 100, gap_s=0.1))
        assert (status, code) == (408, "body_timeout") and 1.9 < seconds < 4
        assert patient.load() == {"open_uploads": 0, "upload_bytes": 0}

    asyncio.run(scenario())


def test_at_capacity_the_stalest_upload_makes_room_and_one_that_sends_does_not(tmp_path) -> None:
    async def scenario() -> None:
        two = uploads(tmp_path, max_uploads=2)
        stalest = asyncio.create_task(refused(two, Pieces(b"{")))
        await asyncio.sleep(0.1)
        stale = asyncio.create_task(refused(two, Pieces(b"{")))
        await asyncio.sleep(0.6)
        new = asyncio.create_task(refused(two, Pieces(*[b" "] * 100, gap_s=0.05)))
        assert (await stalest)[:2] == (408, "body_timeout")
        newer = asyncio.create_task(refused(two, Pieces(*[b" "] * 100, gap_s=0.05)))
        assert (await stale)[:2] == (408, "body_timeout")
        # Both that are left are sending.
        assert (await refused(two, Pieces(b"{")))[:2] == (429, "server_full")
        assert two.load()["open_uploads"] == 2
        for task in (new, newer):
            task.cancel()
        await asyncio.wait([new, newer])
        assert two.load()["open_uploads"] == 0

    asyncio.run(scenario())


HELD = """
import os, sys
from omni_serving.config import ServeConfig
from omni_serving.uploads import Uploads
uploads = Uploads(ServeConfig(model="m", upload_dir=sys.argv[1]))
(uploads._folder / "upload-1").write_bytes(b"a clip")
print(uploads._folder, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_replica_left_is_removed_by_the_next_and_a_live_one_keeps_its_own(tmp_path) -> None:
    def replica() -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", HELD, str(tmp_path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (alive, kept) = replica(), replica()
    try:
        assert uploaded(tmp_path) == sorted([left / "upload-1", kept / "upload-1"])
        killed.kill()
        killed.wait()
        uploads(tmp_path)
        assert uploaded(tmp_path) == [kept / "upload-1"]
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()


def test_a_disk_that_is_full_is_said_without_its_path(tmp_path) -> None:
    async def scenario() -> None:
        here = uploads(tmp_path)
        shutil.rmtree(here._folder)
        body = b'{"v": "data:video/mp4;base64,' + b"A" * 2_000_000
        with pytest.raises(RequestError) as caught:
            async with here.receive(Body(Pieces(body)), None):
                pass
        assert (caught.value.status, caught.value.code) == (503, "no_storage")
        assert str(tmp_path) not in caught.value.message
        assert here.load() == {"open_uploads": 0, "upload_bytes": 0}

    asyncio.run(scenario())
