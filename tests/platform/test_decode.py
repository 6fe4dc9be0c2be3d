"""The one decoder: the frame on screen at each time, sound as long as the pictures, and named errors."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from omni_platform.media.decode import MediaError, decode_clip, sample_times
from omni_platform.media.probe import probe
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import write_mp4

_BITS = 10


def _numbered(number: int, height: int = 16) -> np.ndarray:
    """A picture that shows a number as black and white bars."""
    bars = [(number >> bit) & 1 for bit in range(_BITS)]
    return np.repeat(np.repeat(np.array(bars, np.uint8) * 255, 16)[None, :, None], height, 0).repeat(3, 2)


def _number_of(frame: np.ndarray) -> int:
    bars = frame.reshape(frame.shape[0], _BITS, -1).mean((0, 2)) > 127
    return sum(int(bar) << bit for bit, bar in enumerate(bars))


def _write(
    path: Path,
    *,
    times_ms: list[int],
    tone_hz: float = 0.0,
    sound_s: tuple[float, float] = (0.0, 0.0),
    rate_hz: int = 44_100,
    height: int = 16,
) -> Path:
    """A file whose frame k shows the number k from `times_ms[k]` on, with a stereo tone in `sound_s`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30, options={"crf": "10", "g": "12", "bf": "2"})
        video.width, video.height, video.pix_fmt = 16 * _BITS, height, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        has_sound = sound_s[1] > sound_s[0]
        audio = container.add_stream("aac", rate=rate_hz, layout="stereo") if has_sound else None
        for k, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(_numbered(k, height), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            start, stop = (round(t * rate_hz) for t in sound_s)
            wave = 0.5 * np.sin(2 * np.pi * tone_hz * np.arange(stop - start) / rate_hz).astype(np.float32)
            for at in range(0, len(wave), 1024):
                chunk = np.ascontiguousarray(np.stack([wave[at : at + 1024]] * 2))
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = rate_hz, start + at, Fraction(1, rate_hz)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def _steady(num_frames: int, fps: float, start_ms: int = 0) -> list[int]:
    return [start_ms + round(k * 1000 / fps) for k in range(num_frames)]


@pytest.mark.parametrize(("file_fps", "fps"), [(30, 2.0), (25, 2.0), (30, 5.0), (12.5, 3.0), (30, 30.0)])
def test_frame_i_is_the_one_on_screen_at_time_i_over_fps(tmp_path, file_fps, fps):
    times_ms = _steady(round(4 * file_fps), file_fps)
    clip = decode_clip(_write(tmp_path / "a.mp4", times_ms=times_ms), fps=fps)
    assert clip.sample_fps == fps and len(clip.frames) == 4 * fps
    starts_s = np.array(times_ms) / 1000
    expected = [int(np.searchsorted(starts_s, i / fps + 6e-4) - 1) for i in range(len(clip.frames))]
    assert [_number_of(frame) for frame in clip.frames] == expected


def test_uneven_frame_times_are_read_from_the_file(tmp_path):
    times_ms = [0, 100, 120, 140, 900, 1000, 1700, 1710, 1720, 1900]
    clip = decode_clip(_write(tmp_path / "a.mkv", times_ms=times_ms), fps=4.0)
    assert [_number_of(frame) for frame in clip.frames] == [0, 3, 3, 3, 5, 5, 5, 8]


def test_max_frames_lowers_the_rate_and_says_so(tmp_path):
    path = _write(tmp_path / "a.mp4", times_ms=_steady(120, 30))
    clip = decode_clip(path, fps=10.0, max_frames=9)
    assert len(clip.frames) == 8 and clip.sample_fps == pytest.approx(2.0, abs=0.02)
    assert [_number_of(frame) for frame in clip.frames] == [0, 15, 30, 45, 60, 75, 90, 105]


def test_the_number_of_frames_is_even_and_short_clips_have_two(tmp_path):
    assert [len(sample_times(d, fps=2.0, max_frames=100)[0]) for d in (0.1, 1.0, 2.4, 2.6, 6.2, 6.9)] == [
        *(2, 2, 4, 6, 6 * 2, 7 * 2)
    ]
    clip = decode_clip(_write(tmp_path / "a.mp4", times_ms=_steady(3, 30)))
    assert [_number_of(frame) for frame in clip.frames] == [0, 2]


@pytest.mark.parametrize(("fps", "max_frames"), [(0.0, 10), (-1.0, 10), (2.0, 1)])
def test_rates_that_make_no_sense_are_refused(fps, max_frames):
    with pytest.raises(ValueError, match="fps must be positive"):
        decode_clip(b"", fps=fps, max_frames=max_frames)


def test_sound_is_16_khz_mono_and_as_long_as_the_pictures(tmp_path):
    for sound_s in ((0.0, 2.0), (0.0, 1.2), (0.0, 2.9)):
        path = _write(tmp_path / "a.mp4", times_ms=_steady(60, 30), tone_hz=1000.0, sound_s=sound_s)
        clip = decode_clip(path)
        assert clip.waveform is not None and clip.waveform.dtype == np.float32
        assert len(clip.waveform) == round(clip.duration_s * 16_000) == pytest.approx(32_000, abs=16)
        heard = clip.waveform[: round(min(sound_s[1], 2.0) * 16_000)]
        assert np.abs(np.fft.rfft(heard)).argmax() * 16_000 / len(heard) == pytest.approx(1000, abs=5)
        assert np.abs(heard[1000:-1000]).max() == pytest.approx(0.5, abs=0.05)
        assert np.abs(clip.waveform[len(heard) + 2000 :]).max(initial=0.0) < 1e-3
        assert np.all(clip.waveform * 32768 == np.round(clip.waveform * 32768))


def test_sound_keeps_its_place_when_the_tracks_do_not_start_together(tmp_path):
    late = _write(tmp_path / "late.mkv", times_ms=_steady(60, 30), tone_hz=500.0, sound_s=(1.0, 2.0))
    wave = decode_clip(late).waveform
    assert wave is not None and np.abs(wave[:15_500]).max() < 1e-3 and np.abs(wave[16_500:]).max() > 0.4

    pictures_later = _write(
        tmp_path / "early.mkv", times_ms=_steady(60, 30, start_ms=1000), tone_hz=500.0, sound_s=(0.0, 1.5)
    )
    clip = decode_clip(pictures_later)
    assert clip.waveform is not None and clip.duration_s == pytest.approx(2.0, abs=0.05)
    assert np.abs(clip.waveform[:7_500]).max() > 0.4 and np.abs(clip.waveform[8_500:]).max() < 1e-3
    assert _number_of(clip.frames[0]) == 0


def test_a_mute_clip_has_no_waveform_and_sound_can_be_left_out(tmp_path):
    mute = decode_clip(_write(tmp_path / "mute.mp4", times_ms=_steady(30, 30)))
    assert mute.waveform is None and not mute.has_audio and mute.is_silent
    loud = _write(tmp_path / "loud.mp4", times_ms=_steady(30, 30), tone_hz=400.0, sound_s=(0, 3))
    assert decode_clip(loud).has_audio and not decode_clip(loud).is_silent
    assert decode_clip(loud, use_audio=False).waveform is None
    silent = _write(tmp_path / "silent.mp4", times_ms=_steady(30, 30), tone_hz=0.0, sound_s=(0, 1))
    assert decode_clip(silent).has_audio and decode_clip(silent).is_silent


def test_large_pictures_are_scaled_down_keeping_their_shape(tmp_path):
    path = _write(tmp_path / "a.mp4", times_ms=_steady(30, 30), height=80)
    assert decode_clip(path).frames.shape[1:] == (80, 160, 3)
    clip = decode_clip(path, max_pixels=40 * 80)
    assert clip.frames.shape[1:] == (40, 80, 3)
    assert [_number_of(frame) for frame in clip.frames] == [0, 15]


def test_a_video_that_is_to_be_turned_is_turned_also_when_scaled(tmp_path):
    path = _write(tmp_path / "a.mp4", times_ms=_steady(30, 30), height=80)
    data = path.read_bytes()
    upright = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = np.array([0, 65536, 0, -65536, 0, 0, 80 << 16, 0, 1 << 30], ">i4").tobytes()
    at = data.index(upright, data.index(b"tkhd"))
    data = data[:at] + turned + data[at + len(turned) :]
    for max_pixels, shape in ((10**6, (160, 80, 3)), (40 * 80, (80, 40, 3))):
        frames = decode_clip(data, max_pixels=max_pixels).frames
        assert frames.shape[1:] == shape
        assert [_number_of(np.rot90(frame)) for frame in frames] == [0, 15]


def test_bytes_and_uris_give_what_the_path_gives(film):
    path = film / "clips" / "film-5-00001.mp4"
    by_path = decode_clip(path)
    for source in (path.read_bytes(), str(path), f"file://{path}"):
        clip = decode_clip(source)
        assert np.array_equal(clip.frames, by_path.frames) and np.array_equal(clip.waveform, by_path.waveform)


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    cut = path.with_name(f"cut-{share}{path.suffix}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


def _refused(source: Path | bytes, **options) -> MediaError:
    with pytest.raises(MediaError) as error:
        decode_clip(source, **options)
    return error.value


def test_every_kind_of_cut_file_is_called_truncated(tmp_path):
    film_clip = tmp_path / "index-last.mp4"
    write_mp4(make_scene(seed=1, index=1), film_clip, side_px=64)
    index_first, matroska = tmp_path / "index-first.mp4", tmp_path / "a.mkv"
    for target, options in ((index_first, {"movflags": "faststart"}), (matroska, {})):
        with av.open(str(film_clip)) as read, av.open(str(target), "w", options=options) as write:
            to = {s.index: write.add_stream_from_template(s) for s in read.streams}
            for packet in read.demux():
                if packet.dts is not None:
                    packet.stream = to[packet.stream.index]
                    write.mux(packet)
    for path in (film_clip, index_first, matroska):
        assert decode_clip(path).duration_s == 6.0
        for share in (0.3, 0.8):
            error = _refused(_cut(path, share))
            assert error.reason == "truncated" and f"cut-{share}" in str(error)


def test_what_is_not_a_clip_is_refused_with_its_name_and_reason(tmp_path, film):
    junk, sound = tmp_path / "junk.mp4", tmp_path / "sound.m4a"
    junk.write_text("no film at all\n" * 50)
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "empty.mp4").touch()
    for path, reason in (
        (junk, "container"),
        (tmp_path / "empty.mp4", "container"),
        (tmp_path, "unreadable"),
        (tmp_path / "nowhere.mp4", "missing"),
        (sound, "no_video"),
    ):
        error = _refused(path)
        assert error.reason == reason and path.name in error.detail and str(tmp_path) not in str(error)
    assert "44 bytes" in _refused(b"x" * 44).detail
    long = _refused(film / "clips" / "film-5-00000.mp4", max_duration_s=5.5)
    assert long.reason == "too_long" and "6.0 s" in long.detail and "5.5" in long.detail


def test_a_clip_damaged_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(make_scene(seed=1, index=1), path, side_px=64)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 15_000] = np.random.default_rng(0).bytes(15_000)
    path.write_bytes(data)
    assert _refused(path).reason == "undecodable"


def test_a_media_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(MediaError("missing", "a.mp4 does not exist")))
    assert (error.reason, error.detail) == ("missing", "a.mp4 does not exist")
    assert str(error) == "a.mp4 does not exist [missing]"


def test_the_default_of_two_video_streams_is_read(real_clip):
    path = real_clip("nasa_13013.mp4")
    info = probe(path)
    assert (info.width_px, info.height_px, info.video_codec, info.audio_codec) == (480, 270, "h264", "aac")
    clip = decode_clip(path)
    assert clip.frames.shape == (26, 270, 480, 3) and clip.duration_s == pytest.approx(13.013, abs=1e-3)
    assert clip.waveform is not None and len(clip.waveform) == 208_208 and not clip.is_silent


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [("h265_video.mp4", "hevc", (128, 128)), ("testsrc2_vp9.webm", "vp9", (720, 1280))],
)
def test_other_codecs_decode_to_the_frames_that_pyav_sees(real_clip, name, codec, size):
    path = real_clip(name)
    assert probe(path).video_codec == codec
    clip = decode_clip(path, fps=4.0)
    assert clip.frames.shape == (4, *size, 3) and clip.waveform is None and clip.duration_s == 1.0
    with av.open(str(path)) as container:
        seen = [(float(f.time or 0), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    for i, frame in enumerate(clip.frames):
        on_screen = [picture for time_s, picture in seen if time_s <= i / 4 + 5e-4][-1]
        assert np.abs(frame.astype(int) - on_screen).mean() < 2
