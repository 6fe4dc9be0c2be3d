"""Make the toy base checkpoint: python jobs/base.py --config jobs/configs/train/tiny_base.yaml

One process, no Ray: the toy model goes from random weights to single questions about the film. Tries the next seed by
itself where a stage does not click.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from omni_model.batch import Batch
from omni_model.curriculum import CourseConfig, Lesson, Load, Stage, StageError, run_course
from omni_model.folder import Preparation, save_folder
from omni_model.methods import make_method
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import prepare_media
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import read_vocabulary
from omni_platform.artifacts import Card, write_card
from omni_platform.config import fingerprint, parse_args, to_dict
from omni_platform.media.film import ask, corpus
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The toy base and how it is taught."""

    course: CourseConfig
    tiny: TinyConfig = field(default_factory=TinyConfig)
    preparation: Preparation = field(default_factory=Preparation)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Tried in this order until one gets through all stages."""
    film_seed: int = 100
    held_out_film_seed: int = 900
    num_threads: int = 1
    num_loaders: int = 1
    """Processes that render lessons."""
    output_dir: str = "outputs/tiny_base"


CONFIG = BaseConfig


@dataclass(frozen=True)
class FilmTeacher:
    """Lessons from the film, rendered straight to tensors; held-out lessons come from another seed."""

    config: BaseConfig

    def __call__(self, number: int, stage: Stage) -> Lesson:
        seed = self.config.held_out_film_seed if number < 0 else self.config.film_seed
        scene = make_scene(seed=seed, index=abs(number), num_shots=stage.num_shots)
        fps = self.config.preparation.fps
        times_s = np.arange(round(scene.duration_s * fps)) / fps
        side_px = int(self.config.preparation.video_max_pixels**0.5)
        frames = render_frames(scene, times_s=times_s, side_px=side_px)
        media = prepare_media(frames, sample_fps=fps, waveform=render_waveform(scene))
        families = tuple(family for family, count in stage.mix.items() for _ in range(count))
        questions = tuple((q.family, q.text, q.answer) for q in ask(scene, families))
        return Lesson(media=media, questions=questions)


def main() -> None:
    config = parse_args(BaseConfig)
    torch.set_num_threads(config.num_threads)
    for seed in config.seeds:
        try:
            teach_base(config, seed)
        except StageError as failed:
            print(f"seed {seed}: {failed}; trying the next seed", flush=True)
            continue
        print(f"base written to {config.output_dir}")
        return
    raise SystemExit("no seed got through the course; give more seeds, or raise max_clips of the stage named above")


def teach_base(config: BaseConfig, seed: int) -> None:
    """Take one random model through the course and write it down. Raises `StageError` where it does not click."""
    tokenizer = train_tokenizer(corpus(), vocab_size=config.tiny.vocab_size)
    vocabulary = read_vocabulary(tokenizer)
    backbone = QwenOmniBackbone(build_tiny(config.tiny, vocabulary, seed=seed))
    method = make_method("sft")
    save = partial(
        save_folder,
        Path(config.output_dir),
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(backbone.width),
        preparation=config.preparation,
    )
    history: list[dict] = []

    def report(stage: str, clips: int, figures: dict[str, float]) -> None:
        history.append({"stage": stage, "clips": clips, **figures})
        print(f"{stage:>10} {clips:6d} clips  " + "  ".join(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
        save()  # a run that is ended leaves its last state; only a finished one has a card

    teacher = FilmTeacher(config)
    run_course(backbone, tokenizer, vocabulary, config.course, teach=teacher, report=report, load=_loader(config))
    _write_card(config, seed, history)


def _write_card(config: BaseConfig, seed: int, history: list[dict]) -> None:
    folder = Path(config.output_dir)
    (folder / "history.json").write_text(json.dumps({"seed": seed, "history": history}, indent=1) + "\n")
    last_of_each_stage = {row["stage"]: row for row in history}.values()
    counts = {"seed": seed, "clips": sum(row["clips"] for row in last_of_each_stage)}
    resolved = {"config": to_dict(config), "config_fingerprint": fingerprint(config)}
    write_card(folder, Card(name="tiny_base", counts=counts, **resolved))


def _loader(config: BaseConfig) -> Load:
    def load(make: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
        batches = _Batches(make, list(steps))
        return iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=config.num_loaders))

    return load


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    make: Callable[[int], Batch]
    steps: list[int]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int) -> Batch:
        return self.make(self.steps[i])


if __name__ == "__main__":
    main()
