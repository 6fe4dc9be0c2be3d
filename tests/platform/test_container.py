"""No file leads to another one: the container is decided once, and nothing is opened by name."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import decord
import pytest
from counted_clips import read_number
from polyglots import PRIVATE_NUMBER, Watch, ordinary, polyglots, watch, with_data_reference, write_private

from omni_platform.media.container import HEAD_BYTES, identify, open_media
from omni_platform.media.decode import decode_clip
from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.errors import MediaError

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify and strace are of Linux")
DEMUXERS = {
    "mp4": "mov",
    "mov": "mov",
    "mkv": "matroska",
    "webm": "matroska",
    "avi": "avi",
    "flv": "flv",
    "wmv": "asf",
    "gif": "gif",
    "mpg": "mpeg",
    "ts": "mpegts",
}
NO_CONTAINER = {
    *("hls", "hls, path", "hls, encrypted", "hls as AVI and transport stream", "hls and transport stream"),
    *("hls after one sync byte", "dash", "sdp", "ffconcat", "concat without a header"),
    *("avisynth", "smil", "asx", "svg"),
}
"""Refused by their first bytes."""
AS_THEMSELVES = {"hls behind an mp4", "hls as an attachment"}
"""Whole clips with a play list in a place where it means nothing. Everything else is no clip of its container."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    return ordinary(tmp_path_factory.mktemp("ordinary"))


@pytest.fixture(scope="module")
def private(tmp_path_factory) -> Path:
    return write_private(tmp_path_factory.mktemp("secret"))


@pytest.fixture(scope="module")
def corpus(private, clips) -> dict[str, bytes]:
    return polyglots(private, clips)


@pytest.fixture
def watched(private) -> Iterator[Watch]:
    with watch(private) as it:
        yield it


def test_each_container_is_told_by_its_first_bytes(clips):
    assert {suffix: identify(clip[:HEAD_BYTES]) for suffix, clip in clips.items()} == DEMUXERS
    assert identify(b"\x00\x00\x00\x08wide\x00\x00\x00\x01mdat") == "mov"
    assert identify(b"OggS\x00\x02") == "ogg"
    with_times = b"".join(bytes(4) + b"\x47" + bytes(187) for _ in range(3))
    assert identify(with_times) == "mpegts"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x47",
        b"\x47\x40" + bytes(500),  # one sync byte makes no transport stream
        b"\x47" + bytes(187) + b"\x47" + bytes(187),
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"#EXTM3U\nAVI \n",
        b"\x00\x00\x00\x07moov",  # smaller than its own header
        b"\x00\x10\x00\x00ftypisom",  # no list of brands is that long
        b"FLV\x01\xff",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"ID3\x04",
        b"#EXTM3U\n",
        b"<?xml version='1.0'?><MPD",
        b"ffconcat version 1.0",
        b"v=0\r\no=",
    ],
)
def test_everything_else_is_refused(head):
    assert identify(head) is None
    with pytest.raises(MediaError) as error, open_media(head, name="odd.mp4"):
        pass
    assert error.value.reason == "container"
    assert error.value.detail.startswith("odd.mp4 is in no container that is read here (mp4, mov, ")


def test_a_file_its_bytes_and_an_open_file_are_read_alike(clips, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clips["mp4"])
    with (tmp_path / "a.mp4").open("rb") as file:
        file.seek(77)  # wherever it stands
        for source in (tmp_path / "a.mp4", str(tmp_path / "a.mp4"), clips["mp4"], file, io.BytesIO(clips["mp4"])):
            with open_media(source, name="a.mp4") as container:
                assert len(list(container.decode(video=0))) == 25
        assert not file.closed
    with pytest.raises(MediaError, match=r"b\.mp4 does not exist"), open_media(tmp_path / "b.mp4", name="b.mp4"):
        pass


@linux
def test_the_corpus_has_teeth(corpus, private, watched, tmp_path):
    """Libraries that guess do open the private clip: what the tests below find closed was open."""
    opened = []
    for name, content in corpus.items():
        (tmp_path / "clip.mp4").write_bytes(content)
        for guess in (_guess_with_decord, _guess_with_ffmpeg):
            guess(tmp_path / "clip.mp4")
            if watched.was_opened():
                opened.append(name)
    hls = {"hls", "hls, path", "hls, encrypted", "hls as AVI and transport stream", "hls and transport stream"}
    assert set(opened) == hls | {"ffconcat", "reference to data in another file"}


def _guess_with_decord(path: Path) -> None:
    try:
        decord.VideoReader(str(path))
    except (RuntimeError, decord.DECORDError):
        return


def _guess_with_ffmpeg(path: Path) -> None:
    options = {"safe": "0", "enable_drefs": "1", "use_absolute_path": "1", "extension_picky": "0"}
    try:
        with av.open(str(path), container_options={**options, "allowed_extensions": "ALL"}) as container:
            next(container.decode(video=0), None)
    except (av.error.FFmpegError, IndexError):
        return


@linux
@pytest.mark.parametrize("place", ["in this process", "in the sandbox"])
def test_no_file_of_the_corpus_leads_to_another(corpus, watched, tmp_path, place):
    (tmp_path / "clip.mp4").touch()
    with DecodeProcess() as process:
        for name, content in corpus.items():
            (tmp_path / "clip.mp4").write_bytes(content)
            reason = None
            try:
                if place == "in the sandbox":
                    clip = process.decode(tmp_path / "clip.mp4", deadline_s=60)
                else:
                    clip = decode_clip(tmp_path / "clip.mp4")
                assert all(read_number(frame) < PRIVATE_NUMBER for frame in clip.frames), name
            except MediaError as error:
                reason = error.reason
                assert "/" not in error.detail, name
            assert not watched.was_opened(), name
            assert (reason == "container") == (name in NO_CONTAINER), name
            assert (reason is None) == (name in AS_THEMSELVES), name


@linux
def test_a_reference_to_another_file_is_not_followed_even_where_ffmpeg_would(clips, private, watched):
    clip = with_data_reference(clips["mov"], private)
    with pytest.raises(MediaError) as error:
        decode_clip(clip)
    assert error.value.reason in ("undecodable", "truncated")
    assert not watched.was_opened()


def test_names_are_files_and_never_patterns_or_protocols(clips, tmp_path):
    """`%03d` and `*` select sequences of pictures, `concat:` and `subfile` are protocols."""
    for name in ("frame%03d.mp4", "frame*.mp4", "concat:a.mp4|b.mp4", "subfile,,start,0,end,0,,:a.mp4", "-i"):
        (tmp_path / name).write_bytes(clips["mp4"])
        assert len(decode_clip(tmp_path / name).frames) == 2
    for name in ("frame%02d.mp4", "file:frame%03d.mp4", f"concat:{tmp_path}/-i"):
        with pytest.raises(MediaError) as error:
            decode_clip(str(tmp_path / name))
        assert error.value.reason == "missing"


@linux
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_saw_nobody_ask_for_the_private_file(corpus, private, tmp_path):
    for i, content in enumerate(corpus.values()):
        (tmp_path / f"clip{i}.mp4").write_bytes(content)
    program = (
        "import sys, pathlib\n"
        "from omni_platform.media.decode_process import DecodeProcess\n"
        "with DecodeProcess() as process:\n"
        "    for path in pathlib.Path(sys.argv[1]).glob('clip*.mp4'):\n"
        "        try: process.decode(path, deadline_s=120)\n"
        "        except ValueError: pass\n"
    )
    calls = tmp_path / "calls"
    traced = ["strace", "-f", "-o", str(calls), "-e", "trace=open,openat,openat2,connect,execve,socket"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([*traced, sys.executable, "-c", program, str(tmp_path)], env=environment)
    if result.returncode != 0 and not calls.read_text():
        pytest.skip("tracing is not permitted here")
    assert result.returncode == 0
    text = calls.read_text()
    assert all(f"clip{i}.mp4" in text for i in range(len(corpus)))  # the trace is not blind
    assert str(private) not in text and "127.0.0.1" not in text
