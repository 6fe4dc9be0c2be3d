"""What makes a run the run it is: its settings, its rows and their content, its encoder, the weights it began with.

A run is resumed by its name. Whatever decides its result must then be what it was, or the name means two things: data
that was made again, another base model, or another schedule in the middle. What differs is named, and the run refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from omni_platform.artifacts import CardError, content_of, find_card
from omni_platform.config import to_dict
from omni_platform.lease import RefusedError
from omni_platform.train.checkpoint import Storage, checkpoint_name
from omni_platform.train.config import MUST_MATCH, TrainConfig

STATE_FILE = "state.json"
_NOT_RECORDED = "(not recorded)"
_OPTIONAL = ("eval_data",)
"""Compared only where both sides have it: an evaluation may be added to a run."""
_SHOWN_CHARS = 80


class ResumeError(RefusedError):
    """A checkpoint that belongs to another training; the message names what differs and the fixes."""


def settings_identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what is learned, and the content of the prepared data by its card."""
    plain = {**to_dict(config), "micro_batches_per_step": config.micro_batches_per_step}
    settings = {key: plain[key] for key in MUST_MATCH}
    # What another setting replaces decides nothing.
    if config.max_steps > 0:
        del settings["num_train_epochs"]
    if config.warmup_steps > 0:
        del settings["warmup_ratio"]
    data = {"data": _data(config.dataset_dir), "eval_data": _data(config.eval_dataset_dir)}
    return settings | {name: content for name, content in data.items() if content is not None}


def run_identity(settings: Mapping[str, Any], *, rows: str, task: Mapping[str, str]) -> dict[str, Any]:
    """The whole identity: `settings_identity`, the fingerprint of the rows, and what the task reports of itself.

    As JSON gives it back: tuples become lists.
    """
    return json.loads(json.dumps({**settings, "rows": rows, **{f"task_{name}": text for name, text in task.items()}}))


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line per value that differs, with its dotted name. Only names in `wanted` are looked at, and what it lacks
    of the sections both have."""
    before, now = _flat(saved), _flat(wanted)
    sections = {str(key) for key in wanted} - {key for key in _OPTIONAL if key not in saved}
    names = sorted(name for name in {*before, *now} if name.partition(".")[0] in sections)
    wrong = [name for name in names if before.get(name, _NOT_RECORDED) != now.get(name, _NOT_RECORDED)]
    return [f"{name} was {_shown(before, name)}, is {_shown(now, name)}" for name in _explained(wrong)]


def refuse_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], *, name: str, config: TrainConfig) -> None:
    """Raise `ResumeError` where a checkpoint is of another training; with `resume: force` only say so."""
    wrong = differences(saved, wanted)
    if not wrong:
        return
    if config.resume == "force":
        print(f"{config.run_name}: resume=force: {name} is continued although {'; '.join(wrong)}", flush=True)
        return
    raise ResumeError(
        f"{name} of run {config.run_name!r} belongs to another training: {'; '.join(wrong)}. "
        f"Choose another run_name, set these back, or continue all the same with resume=force{_hint(config, saved)}"
    )


def check_resumable(config: TrainConfig, storage: Storage, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything is started, a run that could not continue from its newest checkpoint.

    Raises `ResumeError`. The rows and the task's own identity are known to the workers alone, which check them too.
    """
    steps = storage.steps()
    if not steps:
        return
    if config.resume == "never":
        raise ResumeError(
            f"run {config.run_name!r} has checkpoints up to step {steps[0]} in {storage.folder} and resume=never: "
            "choose another run_name, or set resume=auto to continue it"
        )
    data = storage.read(checkpoint_name(steps[0]), STATE_FILE)
    if data is not None:
        try:
            saved = json.loads(data)["identity"]
        except (ValueError, KeyError):
            return  # damaged: the workers compare every file with its manifest and take the checkpoint before it
        wanted = json.loads(json.dumps(settings))
        refuse_differences(saved, wanted, name=checkpoint_name(steps[0]), config=config)


def _data(folder: str | None) -> dict[str, Any] | None:
    """What the card of a prepared folder says of its content; None where it has none (rows may come from elsewhere)."""
    if folder is None:
        return None
    try:
        card = find_card(folder)
    except CardError:
        return None  # reported with its fix by whoever opens the rows
    return None if card is None else content_of(card)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _explained(wrong: list[str]) -> list[str]:
    """Settings of the data count through their fingerprint, and are named where that differs."""
    sections = {name.partition(".")[0] for name in wrong if name.endswith(".config_fingerprint")}
    hidden = {name for name in wrong if ".config." in name and name.partition(".")[0] not in sections}
    named = {name.partition(".")[0] for name in wrong if ".config." in name} & sections
    hidden |= {f"{section}.config_fingerprint" for section in named}
    return [name for name in wrong if name not in hidden]


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return _NOT_RECORDED
    text = repr(values[name])
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _hint(config: TrainConfig, saved: Mapping[str, Any]) -> str:
    micro, workers = saved.get("micro_batches_per_step"), config.max_workers
    if micro in (None, config.micro_batches_per_step) or micro % workers:
        return ""
    return f": {workers} workers make the same steps with gradient_accumulation_steps={micro // workers}"
