"""Seventy kinds of clips, each with what it holds and whether decord gives the very frames of the reference decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from counted_clips import BEEP_S, NUM_FRAMES, Recipe, Truth, make, remux, set_edits, turn

X264 = {"preset": "ultrafast", "crf": "20", "g": "12"}
PLAIN = Recipe(video_options=X264)
B_FRAMES = Recipe(video_options={**X264, "bf": "3", "b-adapt": "0"})
TS = replace(B_FRAMES, suffix="ts", format="mpegts")
HEVC = Recipe(video="libx265")
VFR_MS = [0, 100, 120, 140, 500, 540, 1000, 1100, 1110, 1500, 2000, 2040, 2080, 2120]
MAIN = Recipe(
    suffix="webm", video="libvpx-vp9", video_options={"cpu-used": "8", "deadline": "realtime"}, audio="libopus"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of clip: how it is made, and whether decord gives the same bytes."""

    make: Callable[[Path], Truth]
    suffix: str = "mp4"
    exact: bool = False


def _recipe(recipe: Recipe, *, exact: bool = False) -> Kind:
    return Kind(make=lambda path: make(path, recipe), suffix=recipe.suffix, exact=exact)


def _x264(*, exact: bool = False, **options: str) -> Kind:
    return _recipe(Recipe(video_options={**X264, **options}), exact=exact)


def _x265(groups: str) -> dict[str, str]:
    return {"preset": "ultrafast", "x265-params": f"log-level=none:bframes=3:b-adapt=0:{groups}"}


def _steady(start_ms: int = 0) -> list[int]:
    return [start_ms + 40 * k for k in range(NUM_FRAMES)]


def _cut(recipe: Recipe, at_s: float) -> Callable[[Path], Truth]:
    """By stream copy: the packets from the key frame before on, and an edit list that leaves out what is too early."""

    def write(path: Path) -> Truth:
        whole = path.with_name(f"whole-{path.name}")
        truth = make(whole, recipe)
        remux(whole, path, shift_s=-at_s, from_s=at_s)
        return _later(truth, at_s)

    return write


def _later(truth: Truth, at_s: float) -> Truth:
    """What is left of a clip from a time on: the first picture is the one that begins then or next."""
    kept = [k for k, start in enumerate(truth.starts_s) if start >= at_s - 5e-4]
    zero = truth.starts_s[kept[0]]
    return Truth(
        numbers=[truth.numbers[k] for k in kept],
        starts_s=[truth.starts_s[k] - zero for k in kept],
        end_s=truth.end_s - zero,
        beeps_s=[max(beep - zero, 0.0) for beep in truth.beeps_s if beep + BEEP_S > zero],
    )


def _edited(edits: list[tuple[float, float | None]], *, track: int = 0, lasts_s: float) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        set_edits(path, track, edits, lasts_s)
        return path

    return write


def _empty_edit_first(path: Path) -> Truth:
    truth = make(path, PLAIN)
    set_edits(path, 0, [(1.0, None), (3.0, 0.0)], 4.0)
    return replace(truth, beeps_s=[beep - 1.0 for beep in truth.beeps_s if beep > 1.0])


def _edit_ends_early(path: Path) -> Truth:
    truth = make(path, PLAIN)
    set_edits(path, 0, [(2.0, 0.0)], 2.0)
    set_edits(path, 1, [(2.0, 1024 / 48_000)], 2.0)
    return Truth(numbers=truth.numbers[:50], starts_s=truth.starts_s[:50], end_s=2.0, beeps_s=truth.beeps_s[:2])


def _two_edits(path: Path) -> Truth:
    truth = make(path, replace(PLAIN, audio=None))
    set_edits(path, 0, [(1.0, 0.0), (1.0, 2.0)], 2.0)
    numbers = truth.numbers[:25] + truth.numbers[50:75]
    return Truth(numbers=numbers, starts_s=[k / 25 for k in range(50)], end_s=2.0, beeps_s=[])


def _edit_of_sound(path: Path) -> Truth:
    truth = make(path, PLAIN)
    set_edits(path, 1, [(2.5, 0.5 + 1024 / 48_000)], 3.0)
    return replace(truth, beeps_s=[beep - 0.5 for beep in truth.beeps_s if beep > 0.5])


def _joined(recipe: Recipe) -> Callable[[Path], Truth]:
    def write(path: Path) -> Truth:
        first = make(path, recipe)
        second_recipe = replace(recipe, first_number=100)
        second = path.with_name(f"second-{path.name}")
        truth = make(second, second_recipe)
        path.write_bytes(path.read_bytes() + second.read_bytes())
        return Truth(
            numbers=first.numbers + truth.numbers,
            starts_s=first.starts_s + [first.end_s + start for start in truth.starts_s],
            end_s=first.end_s + truth.end_s,
            beeps_s=first.beeps_s + [first.end_s + beep for beep in truth.beeps_s],
        )

    return write


def _from_the_middle(path: Path) -> Truth:
    """Bytes from within a group on: the first picture that can be shown is the next key frame."""
    truth = make(path, replace(TS, video_options={**X264, "bf": "3", "b-adapt": "0", "sc_threshold": "0"}))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        keys = [packet for packet in packets if packet.is_keyframe]
        at = packets[packets.index(keys[1]) + 2].pos
        assert at is not None and keys[2].pts is not None and keys[0].pts is not None
        start_s = float((keys[2].pts - keys[0].pts) * Fraction(stream.time_base or 0))
    path.write_bytes(path.read_bytes()[at:])
    return _later(truth, start_s)


def _turned(matrix: tuple[int, int, int, int], turns: int, recipe: Recipe = PLAIN) -> Callable[[Path], Truth]:
    def write(path: Path) -> Truth:
        truth = make(path, recipe)
        turn(path, matrix)
        return replace(truth, turned=turns)

    return write


def _without_duration(recipe: Recipe) -> Callable[[Path], Truth]:
    """Written as to a pipe: nobody comes back to fill in how long it was."""

    class Pipe:
        def __init__(self, path: Path) -> None:
            self._file = path.open("wb")

        def write(self, data: bytes) -> int:
            return self._file.write(data)

        def close(self) -> None:
            self._file.close()

    def write(path: Path) -> Truth:
        source, pipe = path.with_name(f"whole-{path.name}.mp4"), Pipe(path)
        truth = make(source, recipe)
        kind = {"webm": "webm", "mkv": "matroska"}[recipe.suffix]
        with av.open(str(source)) as read, av.open(pipe, "w", format=kind) as target:
            to = {stream.index: target.add_stream_from_template(stream) for stream in read.streams}
            for packet in read.demux():
                if packet.dts is not None and packet.size:
                    packet.stream = to[packet.stream.index]
                    target.mux(packet)
        pipe.close()
        return truth

    return write


def _title(path: Path) -> Truth:
    truth = make(path, PLAIN)
    data = path.read_bytes()
    with av.open(str(path)) as read, av.open(str(path.with_name("t.mp4")), "w") as write:
        write.metadata["title"] = "AAAABBBB"
        to = {stream.index: write.add_stream_from_template(stream) for stream in read.streams}
        for packet in read.demux():
            if packet.dts is not None:
                packet.stream = to[packet.stream.index]
                write.mux(packet)
    data = path.with_name("t.mp4").read_bytes()
    assert data.count(b"AAAABBBB") == 1
    path.write_bytes(data.replace(b"AAAABBBB", b"\xff\xfe\xe4\xf6\xfc\xdf\x80\x81"))
    return truth


KINDS: dict[str, Kind] = {
    "plain": _recipe(PLAIN, exact=True),
    "b-frames": _recipe(B_FRAMES, exact=True),
    "open groups": _recipe(
        Recipe(video_options={**X264, "bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10"})
    ),
    "every picture a key": _x264(g="1", exact=True),
    "one key in 300": _x264(g="300", bf="2", exact=True),
    "pyramid": _recipe(
        Recipe(video_options={**X264, "preset": "medium", "bf": "4", "b-pyramid": "normal"}), exact=True
    ),
    "index first": _recipe(replace(B_FRAMES, mux={"movflags": "faststart"}), exact=True),
    "fragmented": _recipe(replace(B_FRAMES, mux={"movflags": "frag_keyframe+empty_moov"})),
    "uneven mp4": _recipe(replace(PLAIN, stamps_ms=VFR_MS, last_ms=500), exact=True),
    "uneven mkv": _recipe(replace(PLAIN, suffix="mkv", stamps_ms=VFR_MS, last_ms=40), exact=True),
    "uneven b-frames": _recipe(replace(B_FRAMES, stamps_ms=VFR_MS, last_ms=500), exact=True),
    "cut at a key": Kind(make=_cut(B_FRAMES, 0.96), exact=True),
    "cut between keys": Kind(make=_cut(B_FRAMES, 1.2)),
    "cut within a picture": Kind(make=_cut(B_FRAMES, 1.21)),
    "cut in a long group": Kind(make=_cut(replace(PLAIN, video_options={**X264, "g": "300"}), 1.0)),
    "empty edit first": Kind(make=_empty_edit_first),
    "edit that ends early": Kind(make=_edit_ends_early),
    "two edits": Kind(make=_two_edits),
    "edit in the sound": Kind(make=_edit_of_sound, exact=True),
    "late start mp4": _recipe(replace(PLAIN, stamps_ms=_steady(5000), sound_s=(5.0, 8.0), beeps_s=(5.4, 7.2))),
    "late start mkv": _recipe(
        replace(PLAIN, suffix="mkv", stamps_ms=_steady(5000), sound_s=(5.0, 8.0), beeps_s=(5.4, 7.2))
    ),
    "pictures start later": _recipe(replace(PLAIN, suffix="mkv", stamps_ms=_steady(1000), beeps_s=(1.2, 2.2))),
    "transport stream": _recipe(TS),
    "transport stream, late": _recipe(
        replace(TS, stamps_ms=_steady(20_000), sound_s=(20.0, 23.0), beeps_s=(20.5, 22.2))
    ),
    "joined transport streams": Kind(make=_joined(TS), suffix="ts"),
    "transport stream from the middle": Kind(make=_from_the_middle, suffix="ts"),
    "ogg": _recipe(replace(MAIN, suffix="ogv", format="ogg", video="libvpx")),
    "program stream": _recipe(
        Recipe(
            suffix="mpg", format="mpeg", video="mpeg2video", video_options={"g": "12", "bf": "2", "q": "2"}, audio="mp2"
        )
    ),
    "mpeg-4 avi": _recipe(Recipe(suffix="avi", video="mpeg4", video_options={"q": "2"}, audio="pcm_s16le")),
    "mpeg-4 avi, b-frames": _recipe(
        Recipe(suffix="avi", video="mpeg4", video_options={"q": "2", "bf": "2"}, audio="ac3")
    ),
    "mpeg-4 mp4": _recipe(Recipe(video="mpeg4", video_options={"q": "2", "bf": "2"})),
    "h264 avi": _recipe(replace(PLAIN, suffix="avi", audio="pcm_s16le")),
    "wmv": _recipe(Recipe(suffix="wmv", video="wmv2", video_options={"q": "2"}, audio="wmav2", audio_rate_hz=44_100)),
    "flv": _recipe(replace(B_FRAMES, suffix="flv")),
    "sorenson flv": _recipe(
        Recipe(suffix="flv", video="flv", video_options={"q": "2"}, audio="libmp3lame", audio_rate_hz=44_100)
    ),
    "gif": _recipe(Recipe(suffix="gif", video="gif", pix_fmt="rgb8", audio=None)),
    "mov": _recipe(replace(B_FRAMES, suffix="mov", audio="pcm_s16le"), exact=True),
    "motion jpeg mov": _recipe(Recipe(suffix="mov", video="mjpeg", pix_fmt="yuvj420p", audio="pcm_s16le")),
    "prores": _recipe(Recipe(suffix="mov", video="prores_ks", pix_fmt="yuv422p10le", audio="alac")),
    "hevc": _recipe(
        Recipe(video="libx265", video_options={"preset": "ultrafast", "x265-params": "log-level=none"}), exact=True
    ),
    "hevc, closed groups": _recipe(
        replace(HEVC, video_options=_x265("keyint=12:min-keyint=12:open-gop=0")), exact=True
    ),
    "hevc, open groups": _recipe(replace(HEVC, video_options=_x265("keyint=12:min-keyint=12:open-gop=1"))),
    "hevc 10 bit": _recipe(
        Recipe(
            video="libx265",
            pix_fmt="yuv420p10le",
            video_options={"preset": "ultrafast", "x265-params": "log-level=none:bframes=3"},
        )
    ),
    "av1": _recipe(Recipe(video="libsvtav1", video_options={"preset": "12"}, size=(128, 64))),
    "vp8": _recipe(replace(MAIN, video="libvpx")),
    "vp8, look-ahead": _recipe(replace(MAIN, video="libvpx", video_options={"cpu-used": "8", "lag-in-frames": "12"})),
    "vp9": _recipe(MAIN),
    "vp9, look-ahead": _recipe(replace(MAIN, video_options={"cpu-used": "8", "lag-in-frames": "12"})),
    "vp9 odd size": _recipe(replace(MAIN, size=(129, 33))),
    "webm without duration": Kind(make=_without_duration(MAIN), suffix="webm"),
    "mkv without duration": Kind(make=_without_duration(replace(B_FRAMES, suffix="mkv")), suffix="mkv"),
    "10 bit": _recipe(replace(PLAIN, pix_fmt="yuv420p10le")),
    "4:4:4": _recipe(replace(PLAIN, pix_fmt="yuv444p")),
    "4:4:4 odd size": _recipe(replace(PLAIN, pix_fmt="yuv444p", size=(131, 35))),
    "full range": _recipe(replace(PLAIN, pix_fmt="yuvj420p")),
    "turned by 90": Kind(make=_turned((0, 1, -1, 0), 1)),
    "turned by 180": Kind(make=_turned((-1, 0, 0, -1), 2)),
    "turned by 270": Kind(make=_turned((0, -1, 1, 0), 3)),
    "5.1": _recipe(replace(PLAIN, layout="5.1"), exact=True),
    "5.1 ac3": _recipe(replace(PLAIN, suffix="mkv", layout="5.1", audio="ac3"), exact=True),
    "mono 8 kHz": _recipe(
        replace(PLAIN, suffix="mkv", audio="pcm_s16le", audio_rate_hz=8000, layout="mono"), exact=True
    ),
    "16 kHz mono": _recipe(replace(PLAIN, audio_rate_hz=16_000, layout="mono"), exact=True),
    "opus priming": _recipe(replace(PLAIN, suffix="mkv", audio="libopus"), exact=True),
    "mp3": _recipe(replace(PLAIN, audio="libmp3lame", audio_rate_hz=44_100), exact=True),
    "flac": _recipe(replace(PLAIN, suffix="mkv", audio="flac", audio_rate_hz=44_100), exact=True),
    "gap in the sound mkv": _recipe(replace(PLAIN, suffix="mkv", gaps_s=((0.6, 1.1),)), exact=True),
    "gap in the sound mp4": _recipe(replace(PLAIN, gaps_s=((0.6, 1.1),)), exact=True),
    "gap in the sound ts": _recipe(replace(TS, gaps_s=((0.6, 1.1),))),
    "sound starts late": _recipe(replace(PLAIN, sound_s=(1.0, 3.0), beeps_s=(1.2, 2.2)), exact=True),
    "sound starts early": _recipe(replace(PLAIN, suffix="mkv", stamps_ms=_steady(500), beeps_s=(1.2, 2.2))),
    "sound ends early": _recipe(replace(PLAIN, sound_s=(0.0, 1.5), beeps_s=(0.3, 1.2)), exact=True),
    "sound ends late": _recipe(replace(PLAIN, sound_s=(0.0, 4.0)), exact=True),
    "mute": _recipe(replace(PLAIN, audio=None), exact=True),
    "title that is no UTF-8": Kind(make=_title, exact=True),
}
