"""What a host of clips can do to the server: nothing but deliver them in time."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable

import pytest
from slow_hosts import drip, raw_host

from omni_serving import remote
from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.remote import fetch

_OK = b"HTTP/1.1 200 OK\r\n"


def config_for(port: int, **changes) -> ServeConfig:
    hosts = (f"127.0.0.1:{port}",)
    return ServeConfig(**{"model": "m", "allowed_media_hosts": hosts, "fetch_timeout_s": 30.0, **changes})


def refusal(answer: Callable[[socket.socket], None], *, scheme: str = "http", **changes) -> RequestError:
    with raw_host(answer) as port, pytest.raises(RequestError) as caught:
        fetch(f"{scheme}://127.0.0.1:{port}/clip.mp4", config_for(port, **changes))
    return caught.value


def test_a_clip_is_fetched_into_a_file_without_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with raw_host(lambda end: end.sendall(_OK + b"Content-Length: 4\r\n\r\nclip")) as port:
        file = fetch(f"http://127.0.0.1:{port}/clip.mp4?a=b", config_for(port))
    assert file.read() == b"clip"
    assert not list(tmp_path.iterdir())


def test_the_request_names_its_host_and_path():
    heard = []

    def answer(end: socket.socket) -> None:
        end.sendall(_OK + b"\r\nclip")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            end, _ = server.accept()
            heard.append(end.recv(65536).decode())
            answer(end)
            end.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert fetch(f"http://127.0.0.1:{port}/a/b.mp4?c=d#e", config_for(port)).read() == b"clip"
        thread.join()
    lines = heard[0].split("\r\n")
    assert lines[0] == "GET /a/b.mp4?c=d HTTP/1.1" and f"Host: 127.0.0.1:{port}" in lines


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", _OK + b"Content-Length: 100000\r\n\r\n", _OK + b"\r\n"],
    ids=["no header", "endless header", "a body of known length", "a body without a length"],
)
def test_a_host_that_sends_a_byte_now_and_then_is_given_up_at_the_time_limit(head):
    def answer(end: socket.socket) -> None:
        end.sendall(head)
        drip(end)

    started = time.monotonic()
    problem = refusal(answer, fetch_timeout_s=0.5)
    assert (problem.status, problem.code) == (400, "media_unreachable") and "too long" in problem.message
    assert time.monotonic() - started < 10


def test_a_host_that_begins_no_encryption_is_given_up_at_the_time_limit():
    started = time.monotonic()
    problem = refusal(lambda end: time.sleep(30), scheme="https", fetch_timeout_s=0.5)
    assert problem.code == "media_unreachable" and time.monotonic() - started < 10


def test_a_host_that_is_slow_is_given_up_long_before_the_time_limit(monkeypatch):
    monkeypatch.setattr(remote, "_SILENCE_S", 0.3)

    def answer(end: socket.socket) -> None:
        end.sendall(_OK + b"\r\n")
        drip(end)

    problem = refusal(answer, fetch_timeout_s=60)
    assert problem.code == "media_unreachable" and "too slowly" in problem.message


def test_a_fetch_that_is_no_longer_wanted_ends_at_once():
    gone = threading.Event()
    threading.Timer(0.3, gone.set).start()
    with raw_host(drip) as port, pytest.raises(RequestError):
        started = time.monotonic()
        fetch(f"http://127.0.0.1:{port}/", config_for(port), should_stop=gone.is_set)
    assert time.monotonic() - started < 10


def test_a_clip_that_is_too_large_is_refused_by_its_length_or_when_it_gets_there():
    def announced(end: socket.socket) -> None:
        end.sendall(_OK + b"Content-Length: 1000000\r\n\r\n")
        time.sleep(30)

    def chunked(end: socket.socket) -> None:
        end.sendall(_OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            end.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")

    for answer in (announced, chunked):
        problem = refusal(answer, max_video_bytes=50_000)
        assert (problem.status, problem.code) == (413, "media_too_large")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "media_redirect"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "media_unreachable"),
        (_OK + b"Content-Length: 1000\r\n\r\nbroken off", "media_unreachable"),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "media_unreachable"),
        (b"nonsense\r\n\r\n", "media_unreachable"),
        (b"", "media_unreachable"),
    ],
)
def test_whatever_a_host_answers_is_a_clip_or_a_refusal(answer, code):
    problem = refusal(lambda end: end.sendall(answer))
    assert (problem.status, problem.code) == (400, code)


def _resolve_to(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> list[str]:
    """Let a name lead to these addresses, one after the other; the list grows with each look-up of it."""
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def look_up(host, *args, **kwargs):
        if host != name:
            return real(host, *args, **kwargs)
        looked_up.append(addresses[min(len(looked_up), len(addresses) - 1)])
        return real(looked_up[-1], *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return looked_up


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1", "0.0.0.0"],
)
def test_a_name_that_leads_inwards_is_refused(monkeypatch, address):
    _resolve_to(monkeypatch, "clips.example", address)
    config = ServeConfig(model="m", allowed_media_hosts=("clips.example",))
    with pytest.raises(RequestError, match="private network") as caught:
        fetch("http://clips.example/clip.mp4", config)
    assert caught.value.code == "media_not_allowed"


@pytest.mark.parametrize("listed", ["127.0.0.1", "127.0.0.0/8"])
def test_the_operator_can_list_an_inner_address_and_a_name_is_looked_up_once(monkeypatch, listed):
    looked_up = _resolve_to(monkeypatch, "clips.example", "127.0.0.1", "127.0.0.2")
    with raw_host(lambda end: end.sendall(_OK + b"\r\nclip")) as port:
        config = ServeConfig(model="m", allowed_media_hosts=(f"clips.example:{port}", listed))
        assert fetch(f"http://clips.example:{port}/", config).read() == b"clip"
    assert looked_up == ["127.0.0.1"]
