"""Clips as the towers want them: resized pictures, patches, and log-mel features.

Torch only, because torchvision (which the Hugging Face video processor needs) is not always there. Equal to the
Hugging Face processors: `tests/model/test_processing.py` compares with them.
"""

# F = frames, H = W = picture side in pixels, N = patches, M = mel frames, C = mel bins.

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE_HZ = 16_000
MEL_HOP = 160
MEL_WINDOW = 400
MEL_BINS = 128
MAX_SOUND_SAMPLES = 300 * SAMPLE_RATE_HZ
"""The stock processor cuts a sound here; the audio tower hears nothing after it."""
MIN_SOUND_SAMPLES = 2 * MEL_HOP + 1
"""Three mel frames: the shortest sound of which the audio tower makes a token."""
PATCH_PX = 14
MERGE = 2
TEMPORAL_PATCH = 2
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def fit_size(height_px: int, width_px: int, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The picture size nearest to the given one whose sides are whole merged patches and whose area is allowed.

    Raises `ValueError` for pictures more than 200 times as long as wide, as the Hugging Face processor does.
    """
    factor = PATCH_PX * MERGE
    if max(height_px, width_px) > 200 * min(height_px, width_px):
        raise ValueError(f"a picture of {width_px} x {height_px} px is too long and thin; crop it first")
    # A side under half a patch rounds to nothing, and the picture then counts as too small.
    height, width = (round(side / factor) * factor for side in (height_px, width_px))
    if height * width > max_pixels:
        scale = math.sqrt(height_px * width_px / max_pixels)
        height, width = (max(factor, math.floor(side / scale / factor) * factor) for side in (height_px, width_px))
    elif height * width < min_pixels:
        scale = math.sqrt(min_pixels / (height_px * width_px))
        height, width = (math.ceil(side * scale / factor) * factor for side in (height_px, width_px))
    return height, width


def resize_frames(frames_FHW3: np.ndarray, *, min_pixels: int, max_pixels: int) -> np.ndarray:
    """Frames resized to a size the vision tower takes: uint8 in, uint8 out, bicubic with antialiasing."""
    height, width = fit_size(*frames_FHW3.shape[1:3], min_pixels=min_pixels, max_pixels=max_pixels)
    if (height, width) == frames_FHW3.shape[1:3]:
        return frames_FHW3
    pixels = _as_tensor(frames_FHW3).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def patchify(frames_FHW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Resized frames as the vision tower's input: patches float32 (N, 1176) and their grid int64 (3,) = t, h, w.

    Patches run in the order of the tower's 2 x 2 merging. An odd last frame is repeated.
    """
    frames = _as_tensor(frames_FHW3)
    if len(frames) % TEMPORAL_PATCH:
        frames = torch.cat([frames, frames[-1:]])
    num_frames, height, width, _ = frames.shape
    if height % (PATCH_PX * MERGE) or width % (PATCH_PX * MERGE):
        raise ValueError(f"frames of {width} x {height} px do not divide into patches; call resize_frames first")
    pixels = (frames.permute(0, 3, 1, 2).float() / 255 - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[
        :, None, None
    ]
    t, h, w = num_frames // TEMPORAL_PATCH, height // PATCH_PX, width // PATCH_PX
    split = pixels.view(t, TEMPORAL_PATCH, 3, h // MERGE, MERGE, PATCH_PX, w // MERGE, MERGE, PATCH_PX)
    patches = split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
    return patches, torch.tensor([t, h, w])


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    # Arrays out of an object store are read-only, which torch takes with a warning only.
    return torch.from_numpy(np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"]))


def log_mel(waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Whisper's log-mel features of a mono 16 kHz waveform (..., samples): float32 (..., C, M).

    M is `num_mel_frames`, 100 a second. The values are those of the stock processor, which fills every sound up to
    300 seconds with silence before the transform, keeps the frames that begin within the sound, and cuts what comes
    after 300 seconds. Here only as much silence is transformed as a window reaches.
    """
    wave = waveform if isinstance(waveform, torch.Tensor) else _as_tensor(waveform)
    wave = wave[..., :MAX_SOUND_SAMPLES].float()
    heard = wave.shape[-1]
    # One window more than is kept may reach back into the sound, and the loudest bin of all of them sets the floor.
    windows = min(-(-(heard + MEL_WINDOW // 2) // MEL_HOP), MAX_SOUND_SAMPLES // MEL_HOP)
    end = (windows - 1) * MEL_HOP + MEL_WINDOW // 2
    wave = F.pad(wave, (0, max(0, min(end, MAX_SOUND_SAMPLES) - heard)))
    mirrored = (MEL_WINDOW // 2, max(0, end - MAX_SOUND_SAMPLES))
    padded = F.pad(wave.reshape(-1, wave.shape[-1]), mirrored, mode="reflect").reshape(*wave.shape[:-1], -1)
    window = torch.hann_window(MEL_WINDOW)
    spectrum = torch.stft(padded, MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True)
    # Real and imaginary parts squared: the complex absolute value is slow on CPU.
    power = torch.view_as_real(spectrum).square().sum(-1)
    log = torch.clamp(_mel_filters().T @ power, min=1e-10).log10()
    floor = log.amax(dim=(-2, -1), keepdim=True) - 8.0
    return (torch.maximum(log, floor)[..., : num_mel_frames(heard)] + 4.0) / 4.0


def num_mel_frames(samples: int) -> int:
    """How many mel frames `log_mel` makes of so many samples: one for each 10 ms begun, of 300 seconds at most."""
    return -(-min(samples, MAX_SOUND_SAMPLES) // MEL_HOP)


def num_prepared_mel_frames(samples: int) -> int:
    """How many mel frames a sound has as it is prepared, which is `audible` first."""
    return num_mel_frames(max(samples, MIN_SOUND_SAMPLES))


def audible(waveform: np.ndarray) -> np.ndarray:
    """The waveform (samples,), followed by silence where it is too short for one audio token of the tower."""
    missing = MIN_SOUND_SAMPLES - len(waveform)
    return np.pad(waveform, (0, missing)) if missing > 0 else waveform


@lru_cache(maxsize=1)
def _mel_filters() -> torch.Tensor:
    filters = mel_filter_bank(
        num_frequency_bins=1 + MEL_WINDOW // 2,
        num_mel_filters=MEL_BINS,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


def num_audio_tokens(mel_frames: int) -> int:
    """How many audio tokens (25 a second) the tower makes of so many mel frames."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1
