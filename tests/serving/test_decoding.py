"""Fetching and decoding for many clients at once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
from slow_hosts import drip, raw_host

from omni_platform.media.decode_process import DecodeProcess
from omni_serving.config import ServeConfig
from omni_serving.decoding import DecodePool
from omni_serving.errors import RequestError

_HOSTILE = Path(__file__).parents[1] / "platform"


def config_for(film, **changes) -> ServeConfig:
    return ServeConfig(**{"model": "m", "allowed_media_dirs": (str(film.folder),), "decode_workers": 1, **changes})


@pytest.fixture
def endless(film, monkeypatch) -> DecodePool:
    """A pool of one decoder that works on a clip until it is told to stop."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_HOSTILE), os.environ.get("PYTHONPATH", "")]))
    pool = DecodePool(config_for(film), fps=2.0, max_frames=16)
    pool._idle = [DecodeProcess(child="hostile_child")]
    pool._options = {"attack": "work"}
    return pool


def _pid(pool: DecodePool) -> int:
    child = pool._idle[0]._child
    assert child is not None
    return child.pid


def test_a_client_that_hangs_up_ends_its_decode_and_no_decoder(film, endless) -> None:
    async def run() -> tuple[int, int]:
        await endless.start()
        pid = _pid(endless)
        for _ in range(3):
            request = asyncio.create_task(endless.clip(film.clip, client="a"))
            await asyncio.sleep(0.3)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        endless._options = {"attack": "environment", "target": "X"}
        with pytest.raises(RequestError, match="saw None"):  # the same decoder answers the next one
            await endless.clip(film.clip, client="a")
        return pid, _pid(endless)

    try:
        before, after = asyncio.run(run())
    finally:
        endless.close()
    assert before == after


def test_a_clip_over_its_time_is_refused(film, endless) -> None:
    object.__setattr__(endless._config, "decode_deadline_s", 0.3)
    try:
        with pytest.raises(RequestError) as caught:
            asyncio.run(endless.clip(film.clip, client="a"))
    finally:
        endless.close()
    assert (caught.value.status, caught.value.code) == (400, "media_deadline")
    assert caught.value.message == (
        "the video cannot be used (deadline): the video was not decoded within 0.3 s; "
        "send it shorter or at a lower resolution"
    )


def test_a_decoder_that_hangs_is_replaced(film) -> None:
    async def run() -> RequestError:
        pool = DecodePool(config_for(film, decode_deadline_s=1.0), fps=2.0, max_frames=16)
        try:
            await pool.start()
            os.kill(_pid(pool), signal.SIGSTOP)
            with pytest.raises(RequestError) as caught:
                await pool.clip(str(film.clip), client="a")
            object.__setattr__(pool._config, "decode_deadline_s", 30.0)
            assert (await pool.clip(str(film.clip), client="a")).has_audio
        finally:
            pool.close()
        return caught.value

    assert asyncio.run(run()).code == "media_deadline"


def test_slow_hosts_hold_no_decoder_and_not_all_fetches(film, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def answer(end: socket.socket) -> None:
        if film.clip.name in str(served.pop() if served else ""):
            end.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + film.clip.read_bytes())
            return
        drip(end)

    served: list[str] = []

    async def run(port: int) -> None:
        config = config_for(film, allowed_media_hosts=(f"127.0.0.1:{port}",), fetch_workers=4)
        pool = DecodePool(config, fps=2.0, max_frames=16)
        url = f"http://127.0.0.1:{port}/clip.mp4"
        try:
            await pool.start()
            slow = [asyncio.create_task(pool.clip(url, client="slow")) for _ in range(20)]
            await asyncio.sleep(0.5)
            clip = await asyncio.wait_for(pool.clip(str(film.clip), client="file"), 20)
            assert clip.has_audio
            served.append(film.clip.name)
            clip = await asyncio.wait_for(pool.clip(url, client="fetched"), 20)
            assert clip.has_audio
            assert not any(task.done() for task in slow)
            for task in slow:
                task.cancel()
            results = await asyncio.gather(*slow, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
        finally:
            started = time.monotonic()
            pool.close()
        assert time.monotonic() - started < 20 and not list(tmp_path.iterdir())

    with raw_host(answer) as port:
        asyncio.run(run(port))


def test_an_uploaded_file_may_be_removed_while_its_request_waits(film, endless, tmp_path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(film.clip.read_bytes())

    async def run() -> None:
        await endless.start()
        first = asyncio.create_task(endless.clip(film.clip, client="a"))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(endless.clip(upload, client="b"))
        await asyncio.sleep(0.2)
        upload.unlink()
        first.cancel()
        await asyncio.sleep(0.5)
        assert not second.done()  # it is being decoded, and was not missed
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    try:
        asyncio.run(run())
    finally:
        endless.close()
