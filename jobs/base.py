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

import torch

from omni_model.curriculum import CourseConfig, Lesson, Load, Stage, StageError, Step, run_course
from omni_model.device import ready_device
from omni_model.folder import Preparation, load_backbone, save_folder
from omni_model.methods import make_method
from omni_model.perception import Shown, Words
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import prepare_media
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import read_vocabulary
from omni_platform import storage
from omni_platform.artifacts import Card, write_card
from omni_platform.config import fingerprint, parse_args, to_dict
from omni_platform.lease import hold, refusals_in_one_line
from omni_platform.media.film import OF_SYNC_SCENES, ask, corpus
from omni_platform.media.scene import COLOURS, SHAPES, TONES, Scene, make_scene, make_sync_scene
from omni_platform.media.synth import render_clip


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
    sync_every: int = 3
    """Where a stage asks about synchrony too, one lesson in so many is about it."""
    num_threads: int = 1
    num_loaders: int = 1
    """Processes that render lessons."""
    output_dir: str = "outputs/tiny_base"
    resume_dir: str | None = None
    """What an earlier run left after the stage before `first_stage`; its history is kept."""
    first_stage: str | None = None
    """With `resume_dir`: the stage to go on with."""
    last_stage: str | None = None
    """The stage to end with; None for all."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        storage.require_local(self.output_dir, "output_dir")


CONFIG = BaseConfig
_TONES = (*TONES, "none")
_WORDS = Words(visual=(len(COLOURS), len(SHAPES)), audio=(len(_TONES),))


@dataclass(frozen=True)
class FilmTeacher:
    """Lessons from the film, rendered straight to tensors; held-out lessons come from another seed."""

    config: BaseConfig

    def __call__(self, number: int, stage: Stage) -> Lesson:
        seed = self.config.held_out_film_seed if number < 0 else self.config.film_seed
        families = tuple(family for family, count in stage.mix.items() for _ in range(count))
        of_sync = tuple(family for family in families if family in OF_SYNC_SCENES)
        if of_sync and abs(number) % self.config.sync_every == 0:
            scene, families = make_sync_scene(seed=seed, index=abs(number)), of_sync
        else:
            scene = make_scene(seed=seed, index=abs(number), num_shots=stage.num_shots)
            families = tuple(family for family in families if family not in OF_SYNC_SCENES)
        preparation = self.config.preparation
        side_px = int(preparation.video_max_pixels**0.5)
        frames, fps, waveform = render_clip(scene, fps=preparation.fps, side_px=side_px)
        media = prepare_media(frames, sample_fps=fps, waveform=waveform)
        questions = tuple((q.family, q.text, q.answer) for q in ask(scene, families))
        return Lesson(media=media, questions=questions, shown=_shown(scene) if stage.perception_weight else ())


def _shown(scene: Scene) -> tuple[Shown, ...]:
    """What each shot shows and sounds like; nothing for scenes of synchrony, whose moments are shorter than a shot."""
    if scene.flash is not None:
        return ()
    return tuple(
        Shown(
            start_s=k * scene.shot_s,
            end_s=(k + 1) * scene.shot_s,
            visual=(COLOURS.index(shot.colour), SHAPES.index(shot.shape)),
            audio=(_TONES.index(scene.tone_in(k)),),
        )
        for k, shot in enumerate(scene.shots)
    )


@refusals_in_one_line()
def main() -> None:
    config = parse_args(BaseConfig)
    torch.set_num_threads(config.num_threads)
    with hold(config.output_dir, owner="base"):
        teach(config)


def teach(config: BaseConfig) -> None:
    """Try the seeds in turn; ends the process with a message where none gets through."""
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
    if config.resume_dir is not None:
        backbone.load_state_dict(load_backbone(config.resume_dir).backbone.state_dict())
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
    torch.manual_seed(seed)
    history: list[dict] = _earlier_history(config)

    def report(stage: str, clips: int, figures: dict[str, float]) -> None:
        history.append({"stage": stage, "clips": clips, **figures})
        _write_history(config, seed, history)
        print(f"{stage:>10} {clips:6d} clips  " + "  ".join(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
        save()  # a run that is ended leaves its last state; only a finished one has a card

    teacher = FilmTeacher(config)
    run_course(
        backbone,
        tokenizer,
        vocabulary,
        config.course,
        teach=teacher,
        report=report,
        load=_loader(config),
        words=_WORDS,
        first_stage=config.first_stage,
        last_stage=config.last_stage,
        device=ready_device(config.device),
    )
    _write_card(config, seed, history)


def _write_card(config: BaseConfig, seed: int, history: list[dict]) -> None:
    folder = Path(config.output_dir)
    last_of_each_stage = {row["stage"]: row for row in history}.values()
    counts = {"seed": seed, "clips": sum(row["clips"] for row in last_of_each_stage)}
    resolved = {"config": to_dict(config), "config_fingerprint": fingerprint(config)}
    write_card(folder, Card(name="tiny_base", counts=counts, **resolved))


def _write_history(config: BaseConfig, seed: int, history: list[dict]) -> None:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps({"seed": seed, "history": history}, indent=1) + "\n")


def _earlier_history(config: BaseConfig) -> list[dict]:
    if config.resume_dir is None:
        return []
    return json.loads((Path(config.resume_dir) / "history.json").read_text())["history"]


def _loader(config: BaseConfig) -> Load:
    def load(make: Callable[[int], Step], steps: Iterable[int]) -> Iterator[Step]:
        batches = _Batches(make, list(steps))
        return iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=config.num_loaders))

    return load


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    make: Callable[[int], Step]
    steps: list[int]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int) -> Step:
        return self.make(self.steps[i])


if __name__ == "__main__":
    main()
