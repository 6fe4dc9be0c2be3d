"""The rows that flow through the house: one dataclass each. Their Arrow schemas are in `data/tables.py`.

A leaf: it imports nothing of ours and nothing that needs installing, and every floor may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 2
"""2: samples have a `length`. Folders of version 1 can still be read."""


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
