"""Render scenes of the film: straight to tensors, or to real mp4 files (H.264 and AAC).

Both paths draw with the same functions; the mp4 path adds what codecs do to it.
"""

# Shapes in names: F = frames, H = W = picture side in pixels, N = audio samples.

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from omni_platform.media.scene import COLOURS_RGB, Scene, Shot

SAMPLE_RATE_HZ = 16_000
SYNC_FPS = 25.0
"""Frames a second of scenes of synchrony."""
PICTURE_NOISE = 5.0
"""Spread of the noise over the pictures, in grey levels."""
HISS = 0.003
"""Spread of the noise under the tones, whose own amplitudes are 0.15 to 0.5."""
_FILE_FPS = 8
_AAC_FRAME = 1024
_FLASH = 250.0
"""Grey level of a backdrop that flashes."""


def render_clip(
    scene: Scene, *, fps: float, side_px: int, picture_noise: float = PICTURE_NOISE, hiss: float = HISS
) -> tuple[np.ndarray, float, np.ndarray]:
    """A scene straight to tensors, as decoding its file would give it but for what codecs do.

    Returns frames uint8 (F, H, W, 3), their rate, and sound float32 (N,). `fps` is that of scenes of shots; scenes of
    synchrony are sampled at 25 frames a second, or their flash could fall between two frames. The noises are spreads:
    of pictures in grey levels, of sound as an amplitude.
    """
    rate = sampling_fps(scene, fps)
    # An even number, as the decoder samples: encoders take frames in pairs.
    times_s = np.arange(max(2, 2 * round(scene.duration_s * rate / 2))) / rate
    frames = render_frames(scene, times_s=times_s, side_px=side_px, picture_noise=picture_noise)
    return frames, rate, render_waveform(scene, hiss=hiss)


def sampling_fps(scene: Scene, fps: float) -> float:
    """The rate at which a scene's frames are sampled."""
    return fps if scene.flash is None else SYNC_FPS


def render_frames(
    scene: Scene, *, times_s: np.ndarray, side_px: int, picture_noise: float = PICTURE_NOISE
) -> np.ndarray:
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
        backdrop = scene.background if not _flashes(scene, time_s) else _FLASH
        frames[f] = backdrop + cover_HW1 * (colour - backdrop)
    # One coarse noise picture, shifted per frame: as good as fresh noise for the eye, and cheap.
    noise = rng.normal(0.0, picture_noise, (side_px, side_px, 3)).astype(np.float32)
    for f in range(len(times_s)):
        frames[f] += np.roll(noise, (3 * f, 5 * f), (0, 1))
    return np.clip(frames, 0, 255).astype(np.uint8)


def _flashes(scene: Scene, time_s: float) -> bool:
    # Half a millisecond early: times are multiples of a frame, and so are flashes, up to rounding.
    return scene.flash is not None and scene.flash.start_s <= time_s + 5e-4 < scene.flash.end_s


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
    across = np.maximum(np.abs(dx) - r, np.abs(dy) - 0.2 * r)
    upright = np.maximum(np.abs(dx) - 0.2 * r, np.abs(dy) - r)
    return np.minimum(across, upright)


def render_waveform(scene: Scene, *, hiss: float = HISS) -> np.ndarray:
    """The scene's sound: float32 (N,) in [-1, 1] at 16 kHz, tones over a quiet hiss."""
    rng = np.random.default_rng([scene.seed, scene.index, 8])
    num_samples = round(scene.duration_s * SAMPLE_RATE_HZ)
    wave = rng.normal(0.0, hiss, num_samples).astype(np.float32)
    for tone in scene.tones:
        start, stop = round(tone.start_s * SAMPLE_RATE_HZ), round(tone.end_s * SAMPLE_RATE_HZ)
        time_s = np.arange(stop - start, dtype=np.float32) / SAMPLE_RATE_HZ
        fade = np.clip(np.minimum(time_s, time_s[::-1]) / 0.01, 0.0, 1.0)
        wave[start:stop] += tone.amplitude * fade * np.sin(2 * np.pi * tone.frequency_hz * time_s)
    return np.clip(wave, -1.0, 1.0)


def write_mp4(
    scene: Scene,
    path: Path,
    *,
    side_px: int = 112,
    fps: int | None = None,
    with_sound: bool = True,
    picture_noise: float = PICTURE_NOISE,
    hiss: float = HISS,
) -> None:
    """Render a scene into an mp4 file with one H.264 stream and (unless told otherwise) one AAC stream.

    `fps` is that of the file; left out, the scene's own (`file_fps`). The noises are those of `render_clip`.
    """
    fps = fps or file_fps(scene)
    times_s = np.arange(round(scene.duration_s * fps)) / fps
    frames = render_frames(scene, times_s=times_s, side_px=side_px, picture_noise=picture_noise)
    with av.open(str(path), "w") as container:
        # Without its macroblock tree x264 gives the same bytes for the same pictures, every time.
        options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=fps, options=options)
        video.width = video.height = side_px
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        # Streams are declared before the first packet, or the header lacks them.
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono") if with_sound else None
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            for packet in _encode_audio(audio, render_waveform(scene, hiss=hiss)):
                container.mux(packet)


def file_fps(scene: Scene) -> int:
    """How many frames a second a scene's file holds: 8, or the 25 that a flash of synchrony needs."""
    return _FILE_FPS if scene.flash is None else int(SYNC_FPS)


def _encode_audio(stream: av.AudioStream, wave: np.ndarray):
    for start in range(0, len(wave), _AAC_FRAME):
        chunk = np.ascontiguousarray(wave[None, start : start + _AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        yield from stream.encode(frame)
    yield from stream.encode(None)
