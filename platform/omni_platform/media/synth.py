"""Render scenes of the film: straight to tensors, or to real mp4 files (H.264 and AAC).

Both paths draw with the same functions; the mp4 path adds what codecs do to it.
"""

# Shapes in names: F = frames, H = W = picture side in pixels, N = audio samples.

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from omni_platform.media.film import COLOURS_RGB, Question, Scene, Shot, ask, make_scene, to_sample
from omni_platform.schema import Sample, TextStep

SAMPLE_RATE_HZ = 16_000
_AAC_FRAME = 1024


def render_frames(scene: Scene, *, times_s: np.ndarray, side_px: int) -> np.ndarray:
    """Pictures of a scene at the given times: uint8 (F, H, W, 3)."""
    rng = np.random.default_rng([scene.seed, scene.index, 7])
    grid = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px
    y_HW, x_HW = np.meshgrid(grid, grid, indexing="ij")
    frames = np.empty((len(times_s), side_px, side_px, 3), np.float32)
    for f, time_s in enumerate(times_s):
        k = min(int(time_s / scene.shot_s), len(scene.shots) - 1)
        shot = scene.shots[k]
        moved = shot.x + shot.drift_x * (time_s / scene.shot_s - k - 0.5)
        distance = _signed_distance(shot, x_HW - moved, y_HW - shot.y)
        cover_HW1 = np.clip(0.5 - distance * side_px, 0.0, 1.0)[..., None]
        colour = np.asarray(COLOURS_RGB[shot.colour], np.float32)
        frames[f] = scene.background + cover_HW1 * (colour - scene.background)
    # One coarse noise picture, shifted per frame: as good as fresh noise for the eye, and cheap.
    noise = rng.normal(0.0, 5.0, (side_px, side_px, 3)).astype(np.float32)
    for f in range(len(times_s)):
        frames[f] += np.roll(noise, (3 * f, 5 * f), (0, 1))
    return np.clip(frames, 0, 255).astype(np.uint8)


def _signed_distance(shot: Shot, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Distance to the shape's edge in picture sides, negative inside."""
    r = shot.radius
    if shot.shape == "circle":
        return np.hypot(dx, dy) - r
    if shot.shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * r
    if shot.shape == "triangle":
        slanted = np.abs(dx) * 0.894 - dy * 0.447 - 0.447 * r
        return np.maximum(slanted, dy - 0.8 * r)
    across = np.maximum(np.abs(dx) - r, np.abs(dy) - 0.33 * r)
    upright = np.maximum(np.abs(dx) - 0.33 * r, np.abs(dy) - r)
    return np.minimum(across, upright)


def render_waveform(scene: Scene) -> np.ndarray:
    """The scene's sound: float32 (N,) in [-1, 1] at 16 kHz, tones over a quiet hiss."""
    rng = np.random.default_rng([scene.seed, scene.index, 8])
    num_samples = round(scene.duration_s * SAMPLE_RATE_HZ)
    wave = rng.normal(0.0, 0.003, num_samples).astype(np.float32)
    for tone in scene.tones:
        start, stop = round(tone.start_s * SAMPLE_RATE_HZ), round(tone.end_s * SAMPLE_RATE_HZ)
        time_s = np.arange(stop - start, dtype=np.float32) / SAMPLE_RATE_HZ
        fade = np.clip(np.minimum(time_s, time_s[::-1]) / 0.01, 0.0, 1.0)
        wave[start:stop] += tone.amplitude * fade * np.sin(2 * np.pi * tone.frequency_hz * time_s)
    return np.clip(wave, -1.0, 1.0)


def write_mp4(scene: Scene, path: Path, *, side_px: int = 112, fps: int = 8) -> None:
    """Render a scene into an mp4 file with one H.264 and one AAC stream."""
    times_s = np.arange(round(scene.duration_s * fps)) / fps
    frames = render_frames(scene, times_s=times_s, side_px=side_px)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        video.width = video.height = side_px
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        for packet in _encode_audio(audio, render_waveform(scene)):
            container.mux(packet)


def _encode_audio(stream: av.AudioStream, wave: np.ndarray):
    for start in range(0, len(wave), _AAC_FRAME):
        chunk = np.ascontiguousarray(wave[None, start : start + _AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def write_film(
    folder: Path, *, seed: int, num_clips: int, families: tuple[str, ...], first_index: int = 0, progress=iter
) -> list[Sample]:
    """Render clips into `folder/clips` and their questions into `folder/manifest.jsonl`; returns the samples.

    `progress` wraps the clip indices (a progress bar). The manifest is written last, so its presence says
    that every clip it names is there.
    """
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    for index in progress(range(first_index, first_index + num_clips)):
        scene = make_scene(seed=seed, index=index)
        name = f"film-{seed}-{index:05d}"
        write_mp4(scene, clips / f"{name}.mp4")
        samples += _samples_of(scene, name, families)
    lines = [json.dumps(manifest_line(sample)) for sample in samples]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return samples


def _samples_of(scene: Scene, name: str, families: tuple[str, ...]) -> list[Sample]:
    questions: list[Question] = ask(scene, families)
    return [
        to_sample(q, sample_id=f"{name}-q{i}", clip_uri=f"clips/{name}.mp4") for i, q in enumerate(questions)
    ]


def manifest_line(sample: Sample) -> dict:
    """A sample in the form of a JSONL manifest line."""
    return {
        "id": sample.sample_id,
        "clip": sample.clip_uri,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "question_type": sample.question_type,
        "trajectory": [
            {"text": s.text} if isinstance(s, TextStep) else {"segment": [s.start_s, s.end_s]}
            for s in sample.trajectory
        ],
    }
