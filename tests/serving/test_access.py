"""The routes over real HTTP and without Ray: who may ask, what health says, the shape of refusals."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from omni_serving.access import read_keys
from omni_serving.api import create_api
from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.protocol import ChatRequest
from omni_serving.uploads import Upload, Uploads

ROUTE = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


class Recorder:
    """A service that takes note of what reaches it and answers nothing."""

    method_name = "recorder"

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.uploads = config, Uploads(config)
        self.clients: list[str] = []
        self.clips: list[bytes] = []
        self.full = self.dead = False
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> dict[str, int]:
        return {"open_requests": self.config.max_requests if self.full else 0, **self.uploads.load()}

    def check_health(self) -> None:
        if self.dead:
            raise RuntimeError("the loop over batches has ended: secret detail")

    def check_capacity(self) -> None:
        if self.full:
            raise RequestError("full", code="server_full", status=429)

    async def begin(self, request: ChatRequest, upload: Upload, client: str) -> Any:
        self.clients.append(client)
        if upload.clip is not None:
            self.clips.append(upload.clip.read_bytes())
        await asyncio.to_thread(self.gate.wait)
        raise RequestError("heard", code="heard")


@contextmanager
def serving(tmp_path: Path, keys: tuple[str, ...] = (), **config: Any) -> Iterator[tuple[Recorder, Callable[..., Any]]]:
    """A recorder on a port, and a function that asks it: method, path, headers, body to status, headers, JSON."""
    recorder = Recorder(ServeConfig(model="m", upload_dir=str(tmp_path / "uploads"), **config))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_api(recorder, keys), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)

            def ask(method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Any:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
                connection.request(method, path, data, headers or {})
                reply = connection.getresponse()
                text = reply.read()
                connection.close()
                return reply.status, dict(reply.headers), json.loads(text) if text[:1] == b"{" else text

            ask.port = port  # type: ignore[attr-defined]
            yield recorder, ask
        finally:
            recorder.gate.set()
            server.should_exit = True
            thread.join(30)


def body(url: str = "clip.mp4") -> dict:
    video = {"type": "video_url", "video_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Which?"}, video]}]}


def code(reply: Any) -> tuple[int, str]:
    return reply[0], reply[2]["error"]["code"]


def test_only_the_servers_own_names_are_answered(tmp_path) -> None:
    with serving(tmp_path) as (_, ask):
        for host in ("localhost", "127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000", "localhost."):
            assert ask("GET", "/v1/models", {"Host": host})[0] == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "[::2]", ""):
            status, _, reply = ask("GET", "/v1/models", {"Host": host})
            assert (status, reply["error"]["code"]) == (421, "wrong_host")
            assert code(ask("POST", ROUTE, {"Host": host, **JSON}, body())) == (421, "wrong_host")
        # A load balancer asks by address.
        assert ask("GET", "/health", {"Host": "10.0.0.7:8000"})[0] == 200


def test_the_operator_names_other_hosts(tmp_path) -> None:
    with serving(tmp_path, allowed_hosts=("api.example.org", "*.svc")) as (_, ask):
        for host, status in (
            ("api.example.org:443", 200),
            ("omni.svc", 200),
            ("localhost", 421),
            ("svc", 421),
            ("x.api.example.org", 421),
        ):
            assert ask("GET", "/v1/models", {"Host": host})[0] == status
    with serving(tmp_path, allowed_hosts=("*",)) as (_, ask):
        assert ask("GET", "/v1/models", {"Host": "any.example"})[0] == 200
    with serving(tmp_path, host="192.0.2.7") as (_, ask):
        assert ask("GET", "/v1/models", {"Host": "192.0.2.7:8000"})[0] == 200


def test_a_page_from_elsewhere_cannot_post(tmp_path) -> None:
    with serving(tmp_path) as (recorder, ask):
        for headers, expected in (
            ({"Origin": "https://evil.example", **JSON}, (403, "wrong_origin")),
            ({"Origin": "null", **JSON}, (403, "wrong_origin")),
            ({"Origin": "http://[", **JSON}, (403, "wrong_origin")),
            ({"Sec-Fetch-Site": "cross-site", **JSON}, (403, "wrong_origin")),
            ({"Sec-Fetch-Site": "same-site", **JSON}, (403, "wrong_origin")),
            # What a form can send without asking first:
            ({"Content-Type": "text/plain"}, (415, "wrong_content_type")),
            ({"Content-Type": "application/x-www-form-urlencoded"}, (415, "wrong_content_type")),
            ({"Content-Type": "multipart/form-data; boundary=application/json"}, (415, "wrong_content_type")),
            ({}, (415, "wrong_content_type")),
        ):
            assert code(ask("POST", ROUTE, headers, body())) == expected
        assert recorder.clients == []
        for headers in (
            {"Origin": f"http://127.0.0.1:{ask.port}", "Sec-Fetch-Site": "same-origin", **JSON},
            {"Content-Type": "application/json; charset=utf-8", "Sec-Fetch-Site": "none"},
        ):
            assert code(ask("POST", ROUTE, headers, body())) == (400, "heard")
        # No reply allows a page to read it.
        preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = ask("OPTIONS", ROUTE, preflight)
        assert status == 403 and not any(name.lower().startswith("access-control") for name in headers)
        assert "access-control-allow-origin" not in ask("GET", "/v1/models", {"Origin": "https://evil.example"})[1]


def test_origins_of_the_configuration_may_call(tmp_path) -> None:
    origin = "https://app.example.org"
    with serving(tmp_path, keys=("a-long-key",), cors_allowed_origins=(origin,)) as (_, ask):
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = ask("OPTIONS", ROUTE, {"Origin": origin, **wanted})
        assert (status, headers["access-control-allow-origin"]) == (200, origin)
        assert ask("OPTIONS", ROUTE, {"Origin": "https://evil.example", **wanted})[0] == 400
        status, headers, _ = ask("POST", ROUTE, {"Origin": origin, **JSON}, body())
        assert (status, headers["access-control-allow-origin"]) == (401, origin)


def test_a_key_opens_everything_but_health(tmp_path) -> None:
    with serving(tmp_path, keys=("first-secret", "second-secret")) as (recorder, ask):
        for sent in (
            "",
            "Bearer",
            "Bearer first",
            "Bearer first-secret-and-more",
            "Basic first-secret",
            "first-secret",
        ):
            for method, path in (("GET", "/v1/models"), ("POST", ROUTE), ("GET", "/openapi.json"), ("GET", "/none")):
                status, headers, reply = ask(method, path, {"Authorization": sent, **JSON}, body())
                assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
                assert reply["error"]["type"] == "invalid_request_error" and headers["www-authenticate"] == "Bearer"
                assert "secret" not in reply["error"]["message"]
        assert ask("GET", "/health")[0] == 200
        for key in ("first-secret", "second-secret", "first-secret"):
            assert code(ask("POST", ROUTE, {"Authorization": f"bearer {key}", **JSON}, body())) == (400, "heard")
        one, two, again = recorder.clients
        assert one == again != two and one.startswith("key:") and "secret" not in one
    with serving(tmp_path) as (recorder, ask):
        ask("POST", ROUTE, JSON, body())
        assert recorder.clients == ["addr:127.0.0.1"]


def test_keys_come_from_the_environment_or_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMNI_KEYS", "key-number-1, key-number-2\nkey-number-3")
    assert read_keys(ServeConfig(model="m", api_keys_env="OMNI_KEYS")) == tuple(f"key-number-{i}" for i in (1, 2, 3))
    file = tmp_path / "keys"
    file.write_text("key-in-file\n")
    assert read_keys(ServeConfig(model="m", api_keys_file=str(file))) == ("key-in-file",)
    assert read_keys(ServeConfig(model="m")) == ()
    monkeypatch.setenv("OMNI_SHORT", "swordfi")
    for wrong, message in (
        ({"api_keys_env": "OMNI_ABSENT"}, "api_keys_env=OMNI_ABSENT holds no keys"),
        ({"api_keys_env": "OMNI_SHORT"}, "shorter than 8"),
        ({"api_keys_file": str(tmp_path / "absent")}, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_keys(ServeConfig(model="m", **wrong))
        assert "swordfi" not in str(caught.value)
    with pytest.raises(ValueError, match="both set"):
        ServeConfig(model="m", api_keys_env="OMNI_KEYS", api_keys_file="keys")


def test_health_answers_at_capacity_and_fails_only_with_the_model(tmp_path) -> None:
    with serving(tmp_path, max_requests=3) as (recorder, ask):
        status, _, state = ask("GET", "/health")
        assert (status, state["status"], state["open_requests"]) == (200, "ok", 0)
        recorder.full = True
        status, _, state = ask("GET", "/health")
        assert (status, state["status"], state["open_requests"]) == (200, "at_capacity", 3)
        recorder.dead = True
        status, _, state = ask("GET", "/health")
        assert (status, state["status"]) == (503, "failed") and "secret" not in json.dumps(state)


def test_at_capacity_a_body_is_refused_before_it_is_read(tmp_path) -> None:
    with serving(tmp_path) as (recorder, ask):
        recorder.full = True
        status, headers, reply = ask("POST", ROUTE, JSON, body())
        assert (status, reply["error"]["code"], headers["retry-after"]) == (429, "server_full", "1")
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as connection:
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % ROUTE.encode()
            )
            connection.sendall(b"Content-Length: 100\r\n\r\n")  # and not one byte of it
            reply = b""
            while piece := connection.recv(4096):
                reply += piece
        assert reply.startswith(b"HTTP/1.1 429") and b"connection: close" in reply.lower()
        assert recorder.uploads.load() == {"open_uploads": 0, "upload_bytes": 0}


def test_a_clip_is_a_file_until_the_request_is_over(tmp_path) -> None:
    clip = bytes(range(256)) * 5000
    uri = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    with serving(tmp_path, max_upload_bytes_in_flight=4_000_000, max_video_bytes=2_000_000) as (recorder, ask):
        files = lambda: list((tmp_path / "uploads").glob("replica-*/upload-*"))  # noqa: E731
        recorder.gate.clear()
        asking = threading.Thread(target=ask, args=("POST", ROUTE, JSON, body(uri)))
        asking.start()
        wait_until(lambda: recorder.clips)
        [file] = files()
        assert recorder.clips == [clip] and file.stat().st_mode & 0o777 == 0o600
        assert ask("GET", "/health")[2]["upload_bytes"] == len(json.dumps(body(uri)))
        # Its bytes count until it is decoded, and others find no room meanwhile.
        wide = "data:video/mp4;base64," + "A" * 2_600_000
        assert code(ask("POST", ROUTE, JSON, body(wide))) == (429, "server_full")
        recorder.gate.set()
        asking.join(30)
        assert files() == [] and ask("GET", "/health")[2]["upload_bytes"] == 0
        assert code(ask("POST", ROUTE, JSON, body(wide))) == (400, "heard")


def test_a_client_that_hangs_up_leaves_no_file(tmp_path) -> None:
    with serving(tmp_path) as (recorder, ask):
        connection = socket.create_connection(("127.0.0.1", ask.port))
        begin = b'{"messages": [{"role": "user", "content": "data:video/mp4;base64,' + b"A" * 3_000_000
        head = (
            "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"
        )
        connection.sendall((head % ROUTE).encode() + begin)
        wait_until(lambda: list((tmp_path / "uploads").glob("replica-*/upload-*")))
        connection.close()
        wait_until(lambda: recorder.uploads.load() == {"open_uploads": 0, "upload_bytes": 0})
        assert list((tmp_path / "uploads").glob("replica-*/upload-*")) == []


def test_wrong_bodies_are_refused_in_the_same_shape(tmp_path) -> None:
    uri = "data:video/mp4;base64,QUJD"
    with serving(tmp_path, max_video_bytes=400_000) as (_, ask):
        for data, expected in (
            (b"", (400, "invalid_json")),
            (b"[" * 100_000, (400, "invalid_json")),
            (b'{"messages": ' + b"9" * 600_000, (413, "request_too_large")),
            (json.dumps(body("data:video/mp4;base64," + "A" * 700_000)).encode(), (413, "media_too_large")),
            (json.dumps(body(uri) | {"user": "A" * 600_000}).encode(), (413, "request_too_large")),
            (json.dumps(body("data:video/mp4;base64,?")).encode(), (400, "bad_base64")),
        ):
            assert code(ask("POST", ROUTE, JSON, data)) == expected


def wait_until(condition: Callable[[], Any], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
