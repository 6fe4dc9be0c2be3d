"""Compare methods on the film: python jobs/sweep.py --config jobs/configs/sweep/film.yaml

Encodes the film once with the base's frozen towers, trains every cell from that base on the same clips, examines it
under every condition, and notes it all in one MLflow experiment. Killed and started again it goes on where it was;
cells that are done are skipped. `jobs/film_results.py` makes the pages from the experiment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni_model.device import Precision
from omni_model.encoded import EncodedQuestions, RawClip, encode_clips, save_encoded
from omni_model.folder import TINY_BASE, Preparation, load_backbone
from omni_model.methods import make_method
from omni_model.trial import TrialConfig
from omni_model.trial_exam import ExamConfig
from omni_model.trial_run import TrialFiles, run_trial
from omni_platform import storage
from omni_platform.artifacts import fingerprint_bytes
from omni_platform.bounds import Count, Natural, NotNegative
from omni_platform.config import ConfigError, parse_args, read_config
from omni_platform.lease import hold, refusals_in_one_line
from omni_platform.media.benchmark import SHIFTS
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.film_sets import ClipRange, FilmSizes, Scenes, asked_clips, film_sets, split_sets
from omni_platform.media.scene import FILM_VERSION
from omni_platform.runtime import start_ray
from omni_platform.sweep import Cell, Note, Outcome, Place, Recipe, make_files, run_sweep


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is compared, and on how much."""

    output_dir: str
    experiment_name: str = "film"
    model_name_or_path: str = "tiny"
    """The base that every cell begins with."""
    film: FilmSizes = field(default_factory=FilmSizes)
    scenes: Scenes | None = None
    """Other clips or questions than the benchmark's."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """What all cells have in common."""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Variant -> what differs from `trial`; `like: other` begins with another variant's settings, and `options` are
    added to its options."""
    exam: ExamConfig = field(default_factory=ExamConfig)
    seeds: tuple[Natural, ...] = (0, 1, 2)
    report_steps: Count = 100
    """Steps between two points of the learning curves."""
    only: tuple[str, ...] = ()
    """Run these variants alone."""
    num_cpus: Count | None = None
    gpus_per_cell: NotNegative = 0.0
    """Share of a GPU that a cell takes, and each file of the film while it is encoded; 0 for none. Small models leave a
    GPU mostly idle: with 0.1 ten cells share one."""
    precision: Precision = "float32"
    """Of products while a cell learns."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})

    def __post_init__(self) -> None:
        storage.require_local(self.output_dir, "output_dir")


CONFIG = SweepConfig
_ENCODED_TOGETHER = 32
_FPS, _SIDE_PX = Preparation.fps, int(Preparation.video_max_pixels**0.5)


@refusals_in_one_line()
def main() -> None:
    config = parse_args(SweepConfig)
    with hold(config.output_dir, owner=f"sweep {config.experiment_name}"):
        sys.exit(run(config))


def run(config: SweepConfig) -> int:
    """Encode, train and examine what is missing; returns the exit status."""
    trials = {name: trial_of(config, name) for name in config.cells if not config.only or name in config.only}
    start_ray(num_cpus=config.num_cpus)
    film = encode_film(config)
    cells = [
        Cell(variant=name, seed=seed, config=_content(config, replace(trial, seed=seed)))
        for seed in config.seeds
        for name, trial in trials.items()
    ]
    place = Place(
        output_dir=config.output_dir,
        experiment_name=config.experiment_name,
        tracking_uri=config.tracking_uri or f"sqlite:///{Path(config.output_dir).absolute()}/mlflow.db",
    )
    sweep = run_sweep(cells, partial(run_cell, config=config, film=film), place, gpus_per_cell=config.gpus_per_cell)
    print(f"{sweep.done} cells run, {sweep.skipped} were there, {len(sweep.failed)} failed: {place.tracking_uri}")
    return 1 if sweep.failed else 0


def trial_of(config: SweepConfig, name: str) -> TrialConfig:
    """A variant's trial: the common settings, those of the variant it is like, its own."""
    given = dict(config.cells[name])
    like = given.pop("like", None)
    if like is not None and like not in config.cells:
        raise SystemExit(f"config error: cell {name} is like {like!r}, which is none of {', '.join(config.cells)}")
    base = config.trial if like is None else trial_of(config, like)
    values = asdict(base) | given
    values["options"] = {**base.options, **given.get("options", {})}
    try:
        trial = read_config(TrialConfig, values, source=f"cell {name}")
        make_method(trial.method, trial.options)
    except ConfigError as error:
        raise SystemExit(f"config error: {error}") from None
    except ValueError as error:
        raise SystemExit(f"config error: cell {name}: {error}") from None
    return trial


def _content(config: SweepConfig, trial: TrialConfig) -> dict[str, Any]:
    """What makes a cell's result what it is."""
    film = {"version": FILM_VERSION, **asdict(config.film)}
    base = _base_fingerprint(config.model_name_or_path)
    content = {"trial": asdict(trial), "exam": asdict(config.exam), "film": film, "base": base}
    if config.scenes:
        content["scenes"] = asdict(config.scenes)
    if config.precision != "float32":
        content["precision"] = config.precision
    return json.loads(json.dumps(content))


# --- The film, once through the towers ---

Parts = dict[str, list[str]]
"""Name of a set of clips -> its files."""


def encode_film(config: SweepConfig) -> Parts:
    """Encode what is missing of the film; returns where everything is."""
    model, scenes = config.model_name_or_path, config.scenes
    about = f"{_base_fingerprint(model)}-{FILM_VERSION}-{config.film.questions_per_family}"
    if scenes:
        about += f"-{scenes.num_shots}-{'-'.join(scenes.families)}"
    folder = Path(config.output_dir).absolute() / "encoded" / about
    sets = film_sets(config.film, scenes)
    parts: Parts = {"blank": [str(folder / "blank.pt")]}
    files: dict[str, Recipe] = {
        parts["blank"][0]: (_encode_blanks, (model, [of[0] for of in split_sets(sets, "test") if of]))
    }
    for name, ranges in sets.items():
        parts[name] = [str(folder / f"{name}-{clips.first:06d}-{clips.stop:06d}.pt") for clips in ranges]
        files |= {
            path: (_encode_part, (model, clips, _device(config)))
            for path, clips in zip(parts[name], ranges, strict=True)
        }
    make_files(files, desc="encode", gpus_per_file=config.gpus_per_cell)
    return parts


def _encode_part(path: str, model: str, clips: ClipRange, device: str) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(model).backbone.eval().to(device)
    encoded: list[EncodedQuestions] = []
    for first in range(clips.first, clips.stop, _ENCODED_TOGETHER):
        some = replace(clips, first=first, stop=min(first + _ENCODED_TOGETHER, clips.stop))
        encoded += encode_clips(backbone, list(_raw_clips(some)), device=device)
    save_encoded(Path(path), encoded)


def _raw_clips(clips: ClipRange) -> Iterator[RawClip]:
    for asked in asked_clips(clips, fps=_FPS, side_px=_SIDE_PX):
        yield RawClip(
            clip_id=asked.clip_id,
            frames=asked.clip.frames,
            sample_fps=asked.clip.sample_fps,
            waveform=asked.clip.waveform,
            samples=asked.samples,
            segments=asked.segments,
        )


def _encode_blanks(path: str, model: str, tests: Sequence[ClipRange]) -> None:
    """What the towers make of black frames and silence, for every shape of clip in the tests."""
    backbone = load_backbone(model).backbone.eval()
    clips = []
    for test in tests:
        clip = next(_raw_clips(test))
        assert clip.waveform is not None
        black, silent = np.zeros_like(clip.frames), np.zeros_like(clip.waveform)
        clips.append(replace(clip, frames=black, waveform=silent, samples=(), segments=()))
    save_encoded(Path(path), encode_clips(backbone, clips))


def _device(config: SweepConfig) -> str:
    return "cuda" if config.gpus_per_cell else "cpu"


def _base_fingerprint(model: str) -> str:
    folder = TINY_BASE if model == "tiny" else Path(model)
    return fingerprint_bytes((folder / "model.safetensors").read_bytes())


# --- One cell ---


def run_cell(cell: Cell, note: Note, *, config: SweepConfig, film: Parts) -> Outcome:
    """Train a variant from the base and examine it."""
    trial = replace(trial_of(config, cell.variant), seed=cell.seed)
    files = TrialFiles(
        train=split_sets(film, "train"),
        validation=split_sets(film, "validation"),
        test=split_sets(film, "test"),
        shifted={shift: film[shift] for shift in SHIFTS if shift in film},
        blank=film["blank"],
    )
    found = run_trial(
        config.model_name_or_path,
        trial,
        config.exam,
        files,
        note,
        report_steps=config.report_steps,
        held_out=HELD_OUT,
        device=_device(config),
        precision=config.precision,
    )
    result = {
        "method": trial.method,
        "own": _mean(found.report),
        "report": found.report,
        "shifts": found.shifts,
        "rights": _rights(found.records),
        "steps": _steps(found.records),
        "train_s": found.train_s,
        "exam_s": found.exam_s,
    }
    return Outcome(result=result, files={"records.jsonl": _lines(found.records)})


def _mean(report: Mapping[str, Any]) -> float:
    """Over the families asked; those held out are not in a trial's report."""
    figures = [figure["accuracy"] for figure in report["conditions"]["own"]["by_type"].values()]
    return sum(figures) / len(figures)


def _rights(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Condition -> family -> one digit a question, in the same order everywhere: what paired intervals need."""
    rights: dict[str, dict[str, str]] = {}
    for record in records:
        of_condition, kind = rights.setdefault(record["condition"], {}), record["question_type"]
        of_condition[kind] = of_condition.get(kind, "") + str(int(record["right"]))
    return rights


def _steps(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Family -> words and latents generated one after the other, mean over its questions."""
    own: dict[str, list[int]] = {}
    for record in (r for r in records if r["condition"] == "own"):
        own.setdefault(record["question_type"], []).append(record["completion_tokens"] + record["latent_steps"])
    return {kind: sum(counts) / len(counts) for kind, counts in own.items()}


def _lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records without what only the summary needs."""
    kept = [{k: v for k, v in record.items() if k not in ("measures", "options")} for record in records]
    return "".join(json.dumps(record) + "\n" for record in kept).encode()


if __name__ == "__main__":
    main()
