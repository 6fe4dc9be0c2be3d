"""The rows that pass between stages: one dataclass each. Their Arrow schemas are in `data/tables.py`.

A leaf: it imports nothing of ours and nothing that needs installing, and every floor may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for a name in annotations alone
    import numpy as np

SCHEMA_VERSION = 3
"""Of preprocessed folders. 3: segments are stored for any number of slots, and clips with the length of their sound.
Folders of other versions are refused."""


@dataclass(frozen=True, kw_only=True)
class TextStep:
    """A stretch of words in a trajectory."""

    text: str


@dataclass(frozen=True, kw_only=True)
class LookStep:
    """A moment of the clip that the trajectory looks at and listens to again."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < self.end_s:
            raise ValueError(f"a segment needs 0 <= start_s < end_s, got [{self.start_s}, {self.end_s}]")


Step = TextStep | LookStep


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about one clip, with its answer and the trajectory that leads there (a manifest row)."""

    sample_id: str
    """Unique in its manifest; the row id that resume and quarantine speak of."""
    clip_uri: str
    """Where the clip lies: a path, `file://` or `s3://`. Relative paths are relative to the manifest."""
    question: str
    answer: str
    options: tuple[str, ...] = ()
    """The possible answers of a multiple-choice question; empty for an open one."""
    question_type: str = "open"
    trajectory: tuple[Step, ...] = ()
    """Text and looks in order; the last text step holds the answer. Empty for evaluation-only rows."""
    needs_audio: bool = True
    """Whether a clip without sound is useless for this question (it is then quarantined)."""

    @property
    def looks(self) -> tuple[LookStep, ...]:
        """The segments of the trajectory, in order."""
        return tuple(step for step in self.trajectory if isinstance(step, LookStep))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of clip from which anchors are pooled: one look of one sample's trajectory, or another moment."""

    segment_id: str
    sample_id: str | None
    """None for another moment of the clip, which no sample looks at."""
    clip_id: str
    index: int
    """0-based order of the look within its trajectory, or of the other moment within its clip."""
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FineFeatures:
    """What a tower made of one sense of a segment, as it is or pooled so finely that it can be pooled again exactly.

    The N features are divided into `num_bins` F bins; where a bin ends within a feature, this one stands alone between
    its neighbours. So every bin of a pooling to a divisor of F, overlapping its neighbour or not, is a run of whole
    rows. Up to 2 F - 1 features are kept as they are.
    """

    values: np.ndarray
    """float32 or float16 (A, D): features, or means of adjoining ones weighted by their squared norms."""
    weights: np.ndarray
    """float32 (A,): the weights summed up in each row."""
    num_features: int
    """N; as many as rows where they are kept as they are."""
    num_bins: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentFeatures:
    """A segment after the towers, for any number of slots."""

    visual: FineFeatures
    audio: FineFeatures
    """Without a row where the clip has no sound."""


@dataclass(frozen=True, kw_only=True)
class RowSize:
    """How much of everything a training row is, known before anything of it is decoded or run."""

    length: int
    """Positions of its whole sequence."""
    counts: Mapping[str, int]
    """By loss term, what the row adds to the number that the term's sum is divided by: learned tokens, slots, ..."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A row that could not be used, and why. Nothing is dropped without one of these."""

    row_id: str
    stage: str
    """The stage that refused it: `manifest`, `decode`, `layout` or `anchors`."""
    reason: str
    """A short stable word for counting, such as `missing`, `no_audio`, `container`, `undecodable`, `too_long`."""
    detail: str
    """What went wrong, in words that name the file and the field."""


def steps_to_rows(trajectory: tuple[Step, ...]) -> list[dict]:
    """Trajectory as plain dicts with the fields `text`, `start_s`, `end_s` (the absent ones None)."""
    return [
        {"text": s.text, "start_s": None, "end_s": None}
        if isinstance(s, TextStep)
        else {"text": None, "start_s": s.start_s, "end_s": s.end_s}
        for s in trajectory
    ]


def steps_from_rows(rows: list[dict] | None) -> tuple[Step, ...]:
    """The inverse of `steps_to_rows`."""
    return tuple(
        TextStep(text=row["text"]) if row["text"] is not None else LookStep(start_s=row["start_s"], end_s=row["end_s"])
        for row in (rows if rows is not None else [])
    )
