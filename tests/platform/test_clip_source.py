"""Clips come from stores as from disks, and a store that hangs is only slow."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from omni_platform.media.decode import decode_clip
from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.errors import MediaError

_hang = threading.Event()


class HangingStore(MemoryFileSystem):
    """A store that answers nothing until it is told to."""

    protocol = "hanging"

    def get_file(self, *args, **kwargs):
        _hang.wait(60)
        return super().get_file(*args, **kwargs)


class ForbiddingStore(MemoryFileSystem):
    """A store whose answer is no."""

    protocol = "forbidding"

    def get_file(self, *args, **kwargs):
        raise PermissionError("403: no key")


fsspec.register_implementation("hanging", HangingStore, clobber=True)
fsspec.register_implementation("forbidding", ForbiddingStore, clobber=True)


@pytest.fixture
def decoder(monkeypatch, tmp_path) -> Iterator[DecodeProcess]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _hang.clear()
    with DecodeProcess() as process:
        yield process
    _hang.set()


def test_a_clip_in_a_store_is_decoded_and_its_copy_is_gone(decoder, film, tmp_path):
    path = film / "clips" / "film-5-00003.mp4"
    fsspec.filesystem("memory").pipe_file("/clips/a.mp4", path.read_bytes())
    clip = decoder.decode("memory://clips/a.mp4", deadline_s=60)
    assert (clip.frames == decode_clip(path).frames).all()
    assert not list(tmp_path.iterdir())
    with pytest.raises(MediaError, match=r"b\.mp4 does not exist") as error:
        decoder.decode("memory://clips/b.mp4", deadline_s=60)
    assert error.value.reason == "missing"


def test_a_store_that_hangs_is_given_up_and_the_decoder_lives_on(decoder, film):
    decoder.start()
    child = decoder._child
    started = time.monotonic()
    with pytest.raises(MediaError) as error:
        decoder.decode("hanging://a.mp4", deadline_s=0.3)
    assert str(error.value) == "a.mp4 was not there within 0.3 s [deadline]" and time.monotonic() - started < 20
    with pytest.raises(MediaError) as error:
        decoder.decode("hanging://a.mp4", deadline_s=60, should_stop=lambda: True)
    assert error.value.reason == "cancelled"
    assert decoder.decode(film / "clips" / "film-5-00003.mp4", deadline_s=60).has_audio and decoder._child is child


def test_a_store_that_refuses_is_reported_in_its_own_words(decoder):
    with pytest.raises(MediaError) as error:
        decoder.decode("forbidding://a.mp4", deadline_s=60)
    assert str(error.value) == "a.mp4 cannot be read: PermissionError: 403: no key [unreadable]"
