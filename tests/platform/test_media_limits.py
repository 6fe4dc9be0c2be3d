"""What a file may ask for: headers are checked before anything is allocated, and the data are held against them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import av
import av.error
import numpy as np
import pytest
from counted_clips import NUM_FRAMES, Recipe, make, read_number

from omni_platform.media.decode import Decoder, MediaError, MediaLimits, decode_clip
from omni_platform.media.pyav_frames import Pass
from omni_platform.media.sampling import FrameSampler

PLAIN = Recipe(video_options={"preset": "ultrafast", "crf": "20", "g": "12"})


def _refused(source: Path | bytes, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as error:
        decode_clip(source, **options)
    return error.value


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five black pictures of 8192x4320, in a file of a few hundred kB."""
    path = tmp_path_factory.mktemp("huge") / "huge.mp4"
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "crf": "51", "x264-params": "ref=1"}
        video = container.add_stream("libx264", rate=5, options=options)
        video.width, video.height, video.pix_fmt = 8192, 4320, "yuv420p"
        video.codec_context.thread_count = 1
        black = av.VideoFrame(8192, 4320, "yuv420p")
        for plane, value in zip(black.planes, (16, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        for k in range(5):
            black.pts = k
            container.mux(video.encode(black))
        container.mux(video.encode(None))
    return path


_PEAK = """
import resource, sys
from omni_platform.media.decode import Decoder, MediaError, MediaLimits, decode_clip

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
try:
    clip = decode_clip(sys.argv[1], fps=5.0, limits=MediaLimits(max_coded_pixels=int(sys.argv[2])))
    result = clip.frames.shape
except MediaError as error:
    result = error.reason
print(result, round(peak() - before))
"""


def _peak_mib(path: Path, max_coded_pixels: int) -> tuple[str, int]:
    """What became of decoding in a process of its own, and by how much its memory grew at most."""
    command = [sys.executable, "-c", _PEAK, str(path), str(max_coded_pixels)]
    result = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    outcome, _, grown = result.rpartition(" ")
    return outcome, int(grown)


def test_a_huge_picture_is_refused_by_its_header_or_scaled_within_bounded_memory(huge):
    assert huge.stat().st_size < 500_000
    outcome, grown = _peak_mib(huge, 4096 * 4096)
    assert outcome == "too_large" and grown < 150  # FFmpeg looks at one picture to know the stream
    error = _refused(huge)
    assert "8192x4320 = 35389440 pixels" in error.detail and "16777216" in error.detail
    # One picture is 51 MiB as it is coded and 101 MiB in RGB; all of them in RGB are 505 MiB.
    outcome, grown = _peak_mib(huge, 8192 * 4320)
    assert outcome == "(4, 697, 1321, 3)" and grown < 350


def test_every_limit_is_held_against_the_header_and_against_the_data(tmp_path):
    path = tmp_path / "a.mp4"
    make(path, PLAIN)
    for limits, reason, numbers in (
        (MediaLimits(max_coded_pixels=4095), "too_large", "128x32 = 4096 pixels, allowed are 4095"),
        (MediaLimits(max_duration_s=2.5), "too_long", "lasts 3.0 s, allowed are 2.5 s"),
        (MediaLimits(max_decoded_frames=74), "too_long", "75 frames, allowed are 74"),
        (MediaLimits(max_audio_channels=1), "too_large", "2 channels of sound at 48000 Hz, allowed are 1 "),
        (MediaLimits(max_audio_rate_hz=44_100), "too_large", "48000 Hz, allowed are 64 channels at 44100 Hz"),
    ):
        error = _refused(path, limits=limits)
        assert error.reason == reason and numbers in error.detail and error.detail.startswith("a.mp4 ")
    assert decode_clip(path, limits=MediaLimits(max_decoded_frames=75, max_duration_s=3.02)).has_audio
    # A transport stream declares neither: what it holds is counted.
    stream = tmp_path / "a.ts"
    make(stream, replace(PLAIN, suffix="ts", format="mpegts"))
    assert _refused(stream, limits=MediaLimits(max_decoded_frames=74)).reason == "too_long"
    assert _refused(stream, max_duration_s=2.0).reason == "too_long"


@pytest.mark.parametrize("field", ["max_coded_pixels", "max_duration_s", "max_decoded_frames"])
def test_limits_are_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be positive"):
        MediaLimits(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{field} must be positive"):
        MediaLimits(**{field: float("nan")})  # type: ignore[arg-type]


def test_durations_that_no_clip_has_are_refused_or_not_believed(tmp_path):
    mp4, matroska = tmp_path / "a.mp4", tmp_path / "a.mkv"
    make(mp4, PLAIN)
    make(matroska, replace(PLAIN, suffix="mkv"))
    lying = []
    for box in (b"mvhd", b"mdhd"):
        data = bytearray(mp4.read_bytes())
        at = data.index(box)
        data[at + 20 : at + 24] = b"\xff\xff\xff\xf0"  # ticks: 50 days, or four
        lying.append(bytes(data))
    data = matroska.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    for duration in (float("nan"), float("inf"), 1e300, -5.0, 0.0):
        lying.append(data[:at] + struct.pack(">d", duration) + data[at + 8 :])
    for clip_bytes in lying:
        try:
            clip = decode_clip(clip_bytes)
        except MediaError as error:
            assert error.reason in ("too_long", "truncated")
        else:
            assert clip.duration_s == pytest.approx(3.0, abs=0.05) and len(clip.frames) == 6


def test_pictures_that_change_their_size_keep_that_of_the_first(tmp_path):
    recipe = replace(PLAIN, suffix="ts", format="mpegts", audio=None)
    small, large = tmp_path / "small.ts", tmp_path / "large.ts"
    make(small, recipe)
    make(large, replace(recipe, size=(256, 64), first_number=100))
    clip = decode_clip(small.read_bytes() + large.read_bytes(), fps=5.0)
    assert clip.frames.shape == (30, 32, 128, 3)
    assert [read_number(frame) for frame in clip.frames] == [*range(0, 75, 5), *range(100, 175, 5)]
    growing = _refused(small.read_bytes() + large.read_bytes(), limits=MediaLimits(max_coded_pixels=128 * 32))
    assert growing.reason in ("too_large", "undecodable")


def test_decoding_can_be_cancelled_between_pictures(tmp_path):
    path = tmp_path / "a.mp4"
    make(path, replace(PLAIN, audio=None))
    asked = []

    def stop_at(number: int) -> bool:
        asked.append(number)
        return len(asked) > 20

    assert _refused(path, should_stop=lambda: stop_at(0)).reason == "cancelled" and len(asked) == 21
    asked.clear()
    assert len(decode_clip(path, should_stop=lambda: asked.append(0) is not None).frames) == 6  # never true
    assert len(asked) >= NUM_FRAMES
    asked.clear()
    assert _refused(path, decoder="auto", should_stop=lambda: stop_at(0)).reason == "cancelled"


def test_a_picture_that_is_not_sampled_is_never_converted():
    converted = []

    def picture(number: int) -> np.ndarray:
        converted.append(number)
        return np.full((2, 2, 3), number, np.uint8)

    sampler = FrameSampler(rate=2.0, max_kept=8, expected=2)
    for number in range(75):
        sampler.offer(number / 25, lambda n=number: picture(n))
    frames = sampler.finish(6)
    assert converted == [0, 12, 25, 37, 50, 62] and frames[:, 0, 0, 0].tolist() == converted
    converted.clear()
    held = FrameSampler(rate=2.0, max_kept=8, expected=2)
    for start_s, number in ((0.0, 1), (1.9, 2)):
        held.offer(start_s, lambda n=number: picture(n))
    assert held.finish(6)[:, 0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2] and converted == [1, 2]


def test_file_objects_decode_as_their_path_does_and_stay_open(tmp_path):
    path = tmp_path / "a.mp4"
    make(path, PLAIN)
    expected = decode_clip(path)
    with path.open("rb") as file:
        for source in (file, io.BytesIO(path.read_bytes())):
            for decoder in get_args(Decoder):
                clip = decode_clip(source, decoder=decoder)
                assert np.array_equal(clip.frames, expected.frames)
                assert clip.waveform is not None and expected.waveform is not None
                assert np.array_equal(clip.waveform, expected.waveform)
            assert not source.closed


def test_a_decoder_of_another_name_is_refused():
    with pytest.raises(ValueError, match="decoder is one of auto, pyav, decord; got 'ffmpeg'"):
        decode_clip(b"", decoder="ffmpeg")  # type: ignore[arg-type]


def test_a_file_longer_than_its_header_says_is_read_twice_not_more(tmp_path, monkeypatch):
    path = tmp_path / "a.mkv"
    make(path, replace(PLAIN, suffix="mkv", audio=None))
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    lying = data[:at] + struct.pack(">d", 200.0) + data[at + 8 :]  # a fifth of a second
    runs = []
    run = Pass.run
    monkeypatch.setattr(Pass, "run", lambda self, *args, **options: runs.append(0) or run(self, *args, **options))
    clip = decode_clip(lying, fps=25.0, max_frames=20)
    assert [read_number(frame) for frame in clip.frames] == [int(75 * i / 20) for i in range(20)]
    assert len(runs) == 2 and clip.duration_s == pytest.approx(3.0, abs=1e-6)
    runs.clear()
    assert np.array_equal(decode_clip(data, fps=25.0, max_frames=20).frames, clip.frames) and len(runs) == 1
