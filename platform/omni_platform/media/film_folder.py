"""The film on disk: mp4 files, a manifest of questions, a card; with broken clips among them where wanted."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from tqdm import tqdm

from omni_platform import storage
from omni_platform.artifacts import CARD_NAME, Card, card_bytes, differences, find_card
from omni_platform.bounds import Count, Natural, NotNegative, Positive, check_fields
from omni_platform.config import fingerprint, to_dict
from omni_platform.data.manifest import manifest_line
from omni_platform.media.film import CROSS_MODAL, FAMILIES, ask, to_sample, world_of
from omni_platform.media.film_reasoning import SYNCHRONY
from omni_platform.media.scene import FILM_VERSION, Scene, World, draw_scene
from omni_platform.media.synth import HISS, PICTURE_NOISE, SYNC_FPS, file_fps, write_mp4
from omni_platform.schema import Sample
from omni_platform.staging import staged_output

FAULTS = ("missing", "truncated", "mute", "junk")
"""What can be wrong with a broken clip."""
_SAME_CONTENT = ("output_dir", "overwrite_output_dir", "num_processes")
_FAMILIES: dict[World, tuple[str, ...]] = {"shots": tuple(CROSS_MODAL), "synchrony": tuple(SYNCHRONY)}
_NAMES: dict[World, str] = {"shots": "film", "synchrony": "sync"}


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """Which clips of the film are rendered, and what is asked about them."""

    output_dir: str
    """The folder that gets `clips/`, `manifest.jsonl` and `card.json`; local or s3://."""
    overwrite_output_dir: bool = False
    """Render again even where the same film is there."""
    seed: Natural = 0
    """Films of different seeds have no clip in common."""
    first_index: Natural = 0
    """Number of the first clip."""
    num_clips: Natural = 100
    world: World = "shots"
    """What the clips are: rows of shots with tones, or one shot with a flash and a beep 80 to 320 ms apart."""
    families: tuple[str, ...] = ()
    """One question of each named family per clip; a family may be named more than once. None named: the plain
    cross-modal families of scenes of shots, or the one of synchrony."""
    num_shots: Annotated[int, Interval(ge=1, le=24)] = 6
    """Shots of a clip, up to 24; of scenes of shots only."""
    shot_s: Positive = 1.0
    """Length of a shot; of scenes of shots only."""
    side_px: Count = 112
    """Side of the square picture."""
    fps: int | None = None
    """Frames per second of the files: 8, or 25 for synchrony, unless told otherwise."""
    picture_noise: NotNegative = PICTURE_NOISE
    """Spread of the noise over the pictures, in grey levels."""
    hiss: NotNegative = HISS
    """Spread of the noise under the tones, whose amplitudes are 0.15 to 0.5."""
    bad_clips: Natural = 0
    """So many broken clips more, each with one question: missing, truncated, mute and junk in turn."""
    num_processes: Natural = 0
    """Processes that render; 0 = one per CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        strange = [family for family in self.families if family in FAMILIES and world_of(family) != self.world]
        if strange:
            other = world_of(strange[0])
            raise ValueError(
                f"{', '.join(strange)} cannot be asked about scenes of {self.world}; "
                f"render a film of its own with world={other} for that"
            )
        if self.world == "synchrony" and self.fps is not None and (self.fps < 1 or self.fps % SYNC_FPS):
            raise ValueError(f"files of scenes of synchrony need fps={SYNC_FPS:g} or a multiple of it, got {self.fps}")


def write_film(config: FilmConfig) -> tuple[Card, bool]:
    """Render the film, or find it already rendered; returns its card and whether it was reused.

    The folder appears when it is complete; an interrupted run goes on with the clips that are there.
    """
    config = _complete(config)
    plain = to_dict(config)
    content = fingerprint({**{k: v for k, v in plain.items() if k not in _SAME_CONTENT}, "film": FILM_VERSION})
    folder = storage.absolute(config.output_dir)
    card = find_card(folder)
    same = card is not None and not differences(card, name="film", config_fingerprint=content)
    if card is not None and same and not config.overwrite_output_dir:
        return card, True

    with staged_output(folder, key=content, owner="film") as staged:
        samples: list[Sample] = []
        total = config.num_clips + config.bad_clips
        for clip_samples in tqdm(_write_clips(config, staged.folder), total=total, desc="film", unit="clip"):
            samples += clip_samples
        lines = "".join(json.dumps(manifest_line(sample)) + "\n" for sample in samples)
        storage.write_bytes(storage.join(staged.folder, "manifest.jsonl"), lines.encode())
        counts = {"clips": config.num_clips, "samples": len(samples), "bad_clips": config.bad_clips}
        card = Card(name="film", config=plain, config_fingerprint=content, counts=counts)
        staged.commit(marker=CARD_NAME, data=card_bytes(card))
    return card, False


def _complete(config: FilmConfig) -> FilmConfig:
    """The config with what it left to its world written out, so that the card tells it."""
    fps = config.fps or file_fps(_draw(config, config.first_index))
    return replace(config, families=config.families or _FAMILIES[config.world], fps=fps)


def _write_clips(config: FilmConfig, staging: str) -> Iterator[list[Sample]]:
    numbers = range(config.num_clips + config.bad_clips)
    processes = min(config.num_processes or os.cpu_count() or 1, len(numbers))
    write = partial(_write_clip, config, staging)
    if processes <= 1:
        yield from map(write, numbers)
        return
    # Fresh processes: encoders keep threads, and those do not survive a fork.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=fresh) as pool:
        yield from pool.map(write, numbers, chunksize=4)


def _write_clip(config: FilmConfig, staging: str, number: int) -> list[Sample]:
    """Render clip `number`; those past `num_clips` are broken ones."""
    index = config.first_index + number
    broken = number - config.num_clips
    fault = FAULTS[broken % len(FAULTS)] if broken >= 0 else None
    number_or_fault = f"{index:05d}" if fault is None else f"{fault}-{broken:03d}"
    name = f"{_NAMES[config.world]}-{config.seed}-{number_or_fault}"
    clip = f"clips/{name}.mp4"
    scene = _draw(config, index)
    uri = storage.join(staging, clip)
    if fault != "missing" and not storage.exists(uri):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "clip.mp4"
            write_mp4(
                scene,
                path,
                side_px=config.side_px,
                fps=config.fps,
                with_sound=fault != "mute",
                picture_noise=config.picture_noise,
                hiss=config.hiss,
            )
            storage.write_bytes(uri, _break(path.read_bytes(), fault))
    questions = ask(scene, config.families)
    kept = questions if fault is None else questions[:1]
    return [to_sample(q, sample_id=f"{name}-q{i}", clip_uri=clip) for i, q in enumerate(kept)]


def _draw(config: FilmConfig, index: int) -> Scene:
    return draw_scene(config.world, seed=config.seed, index=index, num_shots=config.num_shots, shot_s=config.shot_s)


def _break(data: bytes, fault: str | None) -> bytes:
    if fault == "truncated":
        return data[: len(data) // 2]
    return b"This is a text file with the name of a clip.\n" if fault == "junk" else data
