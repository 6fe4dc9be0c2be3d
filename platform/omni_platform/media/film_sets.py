"""The clips that a sweep on the film needs, with their questions, cut into ranges that can be made side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from omni_platform.bounds import Count, Natural
from omni_platform.media.benchmark import SHIFTS, BenchmarkClip, Split, clip_of, families_of
from omni_platform.media.film import ask, to_sample
from omni_platform.media.scene import World
from omni_platform.schema import Sample

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FilmSizes:
    """How many clips there are of every kind."""

    train: Count = 5000
    train_synchrony: Natural = 2000
    validation: Natural = 64
    test: Natural = 256
    test_synchrony: Natural = 256
    questions_per_family: Count = 3
    """How often a family is asked about a clip that is trained on, each time drawn anew."""
    shifted: Natural = 96
    """Clips of every shifted test."""
    per_file: Count = 250


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Clips and questions where they are not the benchmark's; there is then neither synchrony nor a shifted test."""

    num_shots: int = 6
    """Shots in every clip."""
    families: tuple[str, ...] = ()
    """Families about shots that are asked in place of the benchmark's, in training and in the test."""


@dataclass(frozen=True, kw_only=True)
class ClipRange:
    """Clips `first` to `stop` - 1 of a split, all alike in kind."""

    split: Split
    first: int
    stop: int
    world: World = "shots"
    shift: str | None = None
    draws: int = 1
    """How often every family is asked about a clip."""
    scenes: Scenes | None = None
    """None: the benchmark's."""


@dataclass(frozen=True, kw_only=True)
class AskedClip:
    """One clip with what is asked about it."""

    clip_id: str
    clip: BenchmarkClip
    samples: tuple[Sample, ...]
    segments: tuple[tuple[float, float], ...]
    """(start, end) in seconds of every shot, in tests; else none."""


def film_sets(sizes: FilmSizes, scenes: Scenes | None) -> dict[str, list[ClipRange]]:
    """Every set of clips by its name (splits, those of synchrony, shifted tests), in ranges of `per_file` clips."""

    def cut(count: int, split: Split, world: World = "shots", shift: str | None = None) -> list[ClipRange]:
        draws = sizes.questions_per_family if split == "train" else 1
        about = ClipRange(split=split, first=0, stop=0, world=world, shift=shift, draws=draws, scenes=scenes)
        starts = range(0, count, sizes.per_file)
        return [replace(about, first=first, stop=min(first + sizes.per_file, count)) for first in starts]

    sets = {
        "train": cut(sizes.train, "train"),
        "validation": cut(sizes.validation, "validation"),
        "test": cut(sizes.test, "test"),
    }
    if scenes:
        return sets
    return {
        **sets,
        "train_synchrony": cut(sizes.train_synchrony, "train", "synchrony"),
        "validation_synchrony": cut(sizes.validation, "validation", "synchrony"),
        "test_synchrony": cut(sizes.test_synchrony, "test", "synchrony"),
        **{shift: cut(sizes.shifted, "test", shift=shift) for shift in SHIFTS},
    }


def split_sets(sets: Mapping[str, T], split: Split) -> tuple[T, ...]:
    """Of sets by name, those of a split as trained: about shots, and about synchrony where there are any."""
    return tuple(sets[name] for name in (split, f"{split}_synchrony") if name in sets)


def asked_clips(clips: ClipRange, *, fps: float, side_px: int) -> Iterator[AskedClip]:
    """The clips of a range with their questions; of the benchmark's, those held out are asked in tests alone."""
    scenes, split, world = clips.scenes, clips.split, clips.world
    families = (scenes.families if scenes else ()) or families_of(world, transfer=split == "test")
    num_shots = scenes.num_shots if scenes else None
    for index in range(clips.first, clips.stop):
        clip = clip_of(split, index, fps=fps, side_px=side_px, world=world, shift=clips.shift, num_shots=num_shots)
        name = f"{split}-{world}-{clips.shift or 'plain'}-{index:06d}"
        # Of some families a scene has few questions: the same one drawn twice is asked once.
        asked = {q.text: q for draw in range(clips.draws) for q in ask(clip.scene, families, draw=draw)}.values()
        yield AskedClip(
            clip_id=name,
            clip=clip,
            samples=tuple(to_sample(q, sample_id=f"{name}-{i}-{q.family}", clip_uri=name) for i, q in enumerate(asked)),
            segments=_shots(clip) if split == "test" else (),
        )


def _shots(clip: BenchmarkClip) -> tuple[tuple[float, float], ...]:
    shot_s = clip.scene.shot_s
    return tuple((k * shot_s, (k + 1) * shot_s) for k in range(len(clip.scene.shots)))
