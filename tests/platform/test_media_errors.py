"""Whatever a file is, it decodes or raises a `MediaError` in our own words: no path, no source line, no pointer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import pytest
from counted_clips import Recipe, make

from omni_platform.media.decode import MediaError, decode_clip
from omni_platform.media.native import native_errors, read_packets
from omni_platform.media.probe import probe

PLAIN = Recipe(video_options={"preset": "ultrafast", "crf": "20", "g": "12"})


def _refused(source: Path | bytes, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as error:
        decode_clip(source, **options)
    return error.value


def test_streams_that_appear_on_the_way_are_no_harm():
    """FFmpeg may find a stream while it reads; whether PyAV trips over it at the end hangs on what memory held."""

    class Trips:
        def demux(self, streams: tuple[str, ...]) -> Iterator[str]:
            yield from streams
            raise IndexError("list index out of range")

    assert list(read_packets(Trips(), "pictures", "sound")) == ["pictures", "sound"]  # type: ignore[arg-type]


def test_an_unknown_codec_is_undecodable(tmp_path):
    path = tmp_path / "a.mp4"
    make(path, PLAIN)
    data = path.read_bytes()
    assert data.count(b"avc1") >= 1 and data.count(b"mp4a") >= 1
    moov = data.index(b"moov")
    no_pictures = data[:moov] + data[moov:].replace(b"avc1", b"zz\x001").replace(b"avcC", b"zzzz")
    no_sound = data[:moov] + data[moov:].replace(b"mp4a", b"zz\x002").replace(b"esds", b"zzzz")
    error = _refused(no_pictures)
    assert error.reason == "undecodable" and "no decoder for its pictures" in error.detail
    error = _refused(no_sound)
    assert error.reason == "undecodable" and "no decoder for its sound" in error.detail
    assert decode_clip(no_sound, use_audio=False).frames.shape[0] == 6
    with pytest.raises(MediaError, match="no decoder for its pictures"):
        probe(no_pictures)


_NATIVE = re.compile(r"\.cc|\.c:|\.cpp|\n|/tmp|0x[0-9a-f]+|Errno|av(codec|format)_|Traceback")


def test_no_message_holds_a_path_a_source_line_or_a_pointer(tmp_path):
    path = tmp_path / "secret-folder" / "clip.mp4"
    path.parent.mkdir()
    make(path, PLAIN)
    data = path.read_bytes()
    rng, reasons = np.random.default_rng(3), set()
    sources: list[Path | bytes] = [tmp_path / "secret-folder" / "nowhere.mp4", path.parent, b"junk" * 100, b""]
    for share in (0.1, 0.5, 0.9):
        cut = path.with_name(f"cut-{share}.mp4")
        cut.write_bytes(data[: int(len(data) * share)])
        sources.append(cut)
    for _ in range(12):
        damaged = bytearray(data)
        at = int(rng.integers(len(data) - 400))
        damaged[at : at + 400] = rng.bytes(400)
        spoilt = path.with_name(f"spoilt-{at}.mp4")
        spoilt.write_bytes(damaged)
        sources += [spoilt, bytes(damaged)]
    for source in sources:
        for decoder in ("pyav",) if isinstance(source, bytes) else ("pyav", "auto"):
            try:
                decode_clip(source, decoder=decoder)
            except MediaError as error:
                assert not _NATIVE.search(str(error)) and "secret-folder/" not in str(error), str(error)
                assert str(tmp_path) not in str(error)
                reasons.add(error.reason)
    assert {"missing", "unreadable", "container", "truncated", "undecodable"} <= reasons
    assert _refused(path, name="your clip", max_duration_s=1.0).detail == "your clip lasts 3.0 s, allowed are 1 s"


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (
            RuntimeError("[12:00:00] /io/decord/src/video/video_reader.cc:151: Check failed: st_nb >= 0\nStack trace:"),
            "undecodable",
        ),
        (AttributeError("'NoneType' object has no attribute 'width'"), "undecodable"),
        (MemoryError("Unable to allocate 2.84 EiB for an array"), "too_large"),
        (av.error.InvalidDataError(1094995529, "Invalid data found", "/srv/private/clip.mp4"), "undecodable"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "undecodable"),
    ],
)
def test_whatever_native_code_raises_becomes_a_media_error(raised, reason):
    with pytest.raises(MediaError) as error, native_errors("clip.mp4", "decoding"):
        raise raised
    assert error.value.reason == reason and error.value.detail.startswith("clip.mp4: decoding ")
    assert not _NATIVE.search(str(error.value)) and "/srv" not in str(error.value)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi", "webm", "wmv", "flv", "gif", "mpg"])
def test_mutated_clips_decode_or_raise_a_media_error(tmp_path, kind):
    video, audio, options = _CODECS.get(kind, ("libx264", "aac", PLAIN.video_options))
    path = tmp_path / f"a.{kind}"
    recipe = Recipe(
        suffix=kind,
        format={"ts": "mpegts", "mpg": "mpeg"}.get(kind),
        video=video,
        video_options=options,
        audio=audio,
        pix_fmt="rgb8" if kind == "gif" else "yuv420p",
        stamps_ms=[40 * k for k in range(25)],
        sound_s=(0.0, 1.0),
    )
    make(path, recipe)
    data, rng = path.read_bytes(), np.random.default_rng(7)
    for turn in range(24):
        mutated = bytearray(data)
        if turn % 4 == 0:
            del mutated[int(rng.integers(len(data))) :]
        elif turn % 4 == 1:
            for at in rng.integers(len(data), size=12):
                mutated[at] = rng.integers(256)
        elif turn % 4 == 2:
            at = int(rng.integers(len(data)))
            mutated[at : at + 500] = rng.bytes(min(500, len(data) - at))
        else:  # the headers: at the beginning, or in an mp4 at the end
            for at in rng.integers(min(800, len(data)), size=4):
                mutated[-at if kind == "mp4" else at] = rng.integers(256)
        try:
            clip = decode_clip(bytes(mutated), max_frames=8)
        except MediaError as error:
            assert not _NATIVE.search(str(error))
        else:
            assert clip.frames.dtype == np.uint8 and len(clip.frames) % 2 == 0


_CODECS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "avi": ("mpeg4", "pcm_s16le", {"q": "2"}),
    "webm": ("libvpx", "libopus", {"cpu-used": "8", "deadline": "realtime"}),
    "wmv": ("wmv2", "wmav2", {"q": "2"}),
    "gif": ("gif", None, {}),
    "mpg": ("mpeg2video", "mp2", {"q": "2"}),
}
