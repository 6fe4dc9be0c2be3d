"""Clips from attackers, over real HTTP: refused with a reason, with nothing else opened, and never a 500."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from mutations import mutate
from polyglots import ordinary, polyglots, watch, write_private

_REFUSALS = {
    *("media_container", "media_undecodable", "media_truncated", "media_no_video", "media_too_long"),
    *("media_too_large", "media_deadline"),
}


def as_uri(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    return ordinary(tmp_path_factory.mktemp("ordinary"))


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is of Linux")
def test_a_clip_that_names_another_file_is_refused_and_that_file_stays_closed(server, clips, tmp_path) -> None:
    private = write_private(tmp_path)
    with watch(private) as watched:
        for name, content in polyglots(private, clips).items():
            status, answer = server.ask(as_uri(content))
            assert not watched.was_opened(), name
            if status == 200:
                assert name in ("hls behind an mp4", "hls as an attachment")
                continue
            assert (status, answer["error"]["code"] in _REFUSALS) in ((400, True), (413, True)), (name, answer)
            assert str(tmp_path) not in answer["error"]["message"], name
        status, answer = server.ask(as_uri(polyglots(private, clips)["hls as AVI and transport stream"]))
    assert (status, answer["error"]["code"]) == (400, "media_container")
    assert answer["error"]["message"].startswith("the video cannot be used (container): the video is in no container")


def test_damaged_clips_get_an_answer_or_a_refusal(server, clips) -> None:
    rng, outcomes, suffixes = np.random.default_rng(3), Counter[int](), list(clips)
    for i in range(40):
        status, answer = server.ask(as_uri(mutate(clips[suffixes[i % len(suffixes)]], rng)))
        assert status == 200 or answer["error"]["code"] in _REFUSALS, (i, answer)
        outcomes[status] += 1
    assert set(outcomes) <= {200, 400, 413} and outcomes[200] and outcomes[400]


def test_decoders_that_are_killed_are_replaced(server, film) -> None:
    decoders = _decoders(server)
    assert len(decoders) == 2
    for decoder in decoders:
        os.kill(decoder, signal.SIGKILL)
    for _ in range(4):
        assert server.ask(film.clip)[0] == 200


def test_clients_that_hang_up_cost_no_decoder(server, film) -> None:
    assert server.ask(film.clip)[0] == 200
    decoders = _decoders(server)
    body = json.dumps(server.body(film.clip)).encode()
    address = urlsplit(server.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    for i in range(12):
        with socket.create_connection((address.hostname, address.port)) as end:
            end.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.01 * i)
    server.wait_for_load(open_requests=0)
    assert server.ask(film.clip)[0] == 200
    assert decoders and set(decoders) <= set(_decoders(server))


def _decoders(server) -> list[int]:
    """The decoders of the replica that live; one that was killed stays a zombie until it is needed again."""
    found = []
    for child in server.replica().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # of which a zombie is a kind
            if any("decode_child" in part for part in child.cmdline()):
                found.append(child.pid)
    return sorted(found)
