"""One trial from beginning to end: a base, trained on encoded clips and examined on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from omni_model.device import Precision, ready_device
from omni_model.encoded import EncodedQuestions, load_encoded
from omni_model.examine import summarise
from omni_model.folder import load_backbone
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.trial import TrialConfig, chosen, train
from omni_model.trial_exam import ExamConfig, examine_trial

Files = Sequence[str]
"""Encoded clips, in order."""
Note = Callable[[int, Mapping[str, float]], None]
"""(steps done, mean loss terms since the last note and accuracies on validation by question type)"""


@dataclass(frozen=True, kw_only=True)
class TrialFiles:
    """What a trial reads. Sets of clips that are trained on together are spread evenly among each other."""

    train: tuple[Files, ...]
    validation: tuple[Files, ...]
    """For the points of the learning curves."""
    test: tuple[Files, ...]
    shifted: Mapping[str, Files] = field(default_factory=dict)
    """Tests that differ from training, by name."""
    blank: Files = ()
    """Black frames and silence, for the blind conditions."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial found."""

    report: dict[str, Any]
    """`summarise` of the test, without the families held out: what was never learned would blur every mean."""
    shifts: dict[str, dict[str, Any]]
    """Accuracy by question type on every shifted test."""
    records: list[dict[str, Any]]
    """Of the test: one a question and condition."""
    train_s: float
    exam_s: float


def run_trial(
    model_name_or_path: str,
    trial: TrialConfig,
    exam: ExamConfig,
    files: TrialFiles,
    note: Note,
    *,
    report_steps: int,
    held_out: Sequence[str] = (),
    device: str = "cpu",
    precision: Precision = "float32",
) -> TrialResult:
    """Train and examine; `note` is called every `report_steps` of training and at its end.

    Tests also ask the families of `held_out`, which no training asks; `precision` is of training alone.
    """
    torch.set_num_threads(1)
    device = ready_device(device)
    loaded = load_backbone(model_name_or_path)
    method = make_method(trial.method, trial.options)
    validation = _asked(files.validation, trial.families)
    curves_s = 0.0
    examine = partial(examine_trial, loaded, device=device)

    def report(step: int, learner: Learner, terms: dict[str, float]) -> None:
        nonlocal curves_s
        begun = time.monotonic()
        by_type = summarise(examine(learner, validation, ExamConfig()))["conditions"]["own"]["by_type"]
        points = {f"val/{kind}": figure["accuracy"] for kind, figure in by_type.items()}
        points["val/own"] = sum(points.values()) / len(points)
        note(step, {f"train/{name}": value for name, value in terms.items()} | points)
        curves_s += time.monotonic() - begun

    started = time.monotonic()
    clips = spread(files.train)
    learner = train(loaded, method, clips, trial, every=report_steps, report=report, device=device, precision=precision)
    trained = time.monotonic()
    families = (*trial.families, *held_out) if trial.families else ()
    blanks = {clip.clip.grid_thw: clip.clip for clip in _read(files.blank)}
    records = examine(learner, _asked(files.test, families), exam, blanks=blanks)
    shifts = {
        name: summarise(examine(learner, _asked((of_shift,), families), ExamConfig()))
        for name, of_shift in files.shifted.items()
    }
    return TrialResult(
        report=summarise([record for record in records if record["question_type"] not in held_out]),
        shifts={name: found["conditions"]["own"]["by_type"] for name, found in shifts.items()},
        records=records,
        train_s=trained - started - curves_s,
        exam_s=time.monotonic() - trained,
    )


def spread(sets: Sequence[Files]) -> list[EncodedQuestions]:
    """The clips of several sets, mixed so that any beginning holds them in the same proportion."""
    clips = [_read(files) for files in sets]
    places = sorted((i / len(part), n, i) for n, part in enumerate(clips) for i in range(len(part)))
    return [clips[n][i] for _, n, i in places]


def _asked(sets: Sequence[Files], families: Sequence[str]) -> list[EncodedQuestions]:
    return chosen([clip for files in sets for clip in _read(files)], families)


def _read(files: Files) -> list[EncodedQuestions]:
    return [clip for path in files for clip in load_encoded(Path(path))]
