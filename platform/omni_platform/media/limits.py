"""What a media file may ask of the decoder. Header values are checked against these before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass, fields

from omni_platform.media.errors import MediaError


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Upper bounds for one clip; the defaults take 4K clips of hours. A server that decodes for strangers sets less."""

    max_coded_pixels: int = 4096 * 4096
    """Pixels of one picture as it is coded, before scaling. A decoder holds up to 17 such pictures."""
    max_duration_s: float = 6 * 3600.0
    """How long pictures or sound last, by the header and by the data."""
    max_decoded_frames: int = 6 * 3600 * 120
    """Pictures that are decoded, sampled or not."""
    max_audio_channels: int = 64
    max_audio_rate_hz: int = 768_000

    def __post_init__(self) -> None:
        if wrong := [field.name for field in fields(self) if not getattr(self, field.name) > 0]:
            raise ValueError(f"{', '.join(wrong)} must be positive")

    def check_picture(self, width_px: int, height_px: int, name: str) -> None:
        """Raise `MediaError("too_large")` for a picture with too many coded pixels."""
        if width_px * height_px > self.max_coded_pixels:
            size = f"{width_px}x{height_px} = {width_px * height_px} pixels"
            raise MediaError("too_large", f"{name} has pictures of {size}, allowed are {self.max_coded_pixels}")

    def check_duration(self, duration_s: float, name: str) -> None:
        """Raise `MediaError("too_long")`; a duration that is no number is too long as well."""
        if not duration_s <= self.max_duration_s:
            raise MediaError("too_long", f"{name} lasts {duration_s:.1f} s, allowed are {self.max_duration_s:g} s")

    def check_frames(self, num_frames: int, name: str) -> None:
        """Raise `MediaError("too_long")` for too many pictures."""
        if num_frames > self.max_decoded_frames:
            raise MediaError("too_long", f"{name} has {num_frames} frames, allowed are {self.max_decoded_frames}")

    def check_sound(self, rate_hz: int, num_channels: int, name: str) -> None:
        """Raise `MediaError("too_large")` for sound that no ordinary file has."""
        if rate_hz > self.max_audio_rate_hz or num_channels > self.max_audio_channels:
            allowed = f"{self.max_audio_channels} channels at {self.max_audio_rate_hz} Hz"
            detail = f"{name} has {num_channels} channels of sound at {rate_hz} Hz, allowed are {allowed}"
            raise MediaError("too_large", detail)


DEFAULT_LIMITS = MediaLimits()
