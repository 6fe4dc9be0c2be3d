"""What the data side hands over for one sample; the model room states what it needs and asks for no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from omni_platform.schema import Sample, SegmentFeatures


class RowOutline(Protocol):
    """A sample and the shape of its clip: all that the length of its sequence depends on."""

    @property
    def sample(self) -> Sample: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def height_px(self) -> int: ...

    @property
    def width_px(self) -> int: ...

    @property
    def sample_fps(self) -> float: ...

    @property
    def num_samples(self) -> int | None:
        """Of 16 kHz sound; None for a clip without any"""
        ...

    @property
    def pooled_bins(self) -> tuple[int | None, int | None]:
        """In how many bins visual and audio features of segments were pooled; None where all are kept as they are"""
        ...


class PreparedRow(Protocol):
    """A sample with its decoded clip and the anchors of its looks."""

    @property
    def sample(self) -> Sample: ...

    @property
    def clip_id(self) -> str: ...

    @property
    def frames(self) -> np.ndarray:
        """uint8 (F, H, W, 3)"""
        ...

    @property
    def sample_fps(self) -> float:
        """True rate of the frames."""
        ...

    @property
    def waveform(self) -> np.ndarray | None:
        """float32, 16 kHz mono; None for a clip without sound"""
        ...

    @property
    def anchors(self) -> Sequence[SegmentFeatures]:
        """one a look, in order"""
        ...

    @property
    def other_anchors(self) -> Sequence[SegmentFeatures]:
        """other segments of the clip, perhaps none"""
        ...
