"""Beginning a run with given weights and nothing else: a fresh optimizer, the schedule from its start, step 0."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omni_platform import storage
from omni_platform.train.checkpoint import Storage, fetch, gather, own_scratch, step_of
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import import_deepspeed, read_weights
from omni_platform.train.place import Place
from omni_platform.train.task import Task


def init_weights(config: TrainConfig, task: Task, place: Place) -> None:
    """Load `init_weights_from` into the task, unless the run has a checkpoint to resume. Every worker calls it.

    Raises `ValueError` where the folder holds neither a checkpoint nor an exported model, or does not fit the task.
    """
    source = config.init_weights_from
    if source is None or gather(place.storage.steps())[0]:
        return
    step, scratch = step_of(source), own_scratch("init", place.storage.folder, dist.get_rank())
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if step is None:
            _load_export(task, _export_here(source, scratch))
        else:
            folder = fetch(Storage.of_checkpoint(source), step, scratch)
            _fill(task.module, read_weights(folder / "engine"), source)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if dist.get_rank() == 0:
        print(f"{config.run_name}: begins with the weights of {source}", flush=True)


def _export_here(source: str, scratch: Path) -> Path:
    """The local folder of an exported model."""
    names = storage.list_tree(source)
    if not names:
        raise ValueError(f"init_weights_from={source} is not there or empty: give a checkpoint or an exported model")
    if newest := max((name.partition("/")[0] for name in names if step_of(name.partition("/")[0])), default=None):
        raise ValueError(
            f"init_weights_from={source} is the folder of a run: name a checkpoint in it, such as "
            f"{storage.join(source, newest)}"
        )
    if not storage.is_remote(source):
        return storage.local_path(source)
    storage.copy_files(source, scratch, names)
    return scratch


def _load_export(task: Task, folder: Path) -> None:
    load: Any = getattr(task, "load_weights", None)
    if load is None:
        raise ValueError(f"this task cannot begin with an exported model ({folder}): name a checkpoint")
    load(folder)


def _fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Put whole weights into a module, whose own may be divided among the workers. Every worker calls it."""
    parameters = dict(module.named_parameters())
    state = module.state_dict()
    missing = sorted(parameters.keys() - weights.keys())
    unknown = sorted(weights.keys() - {*parameters, *state})
    if missing or unknown:
        raise ValueError(
            f"init_weights_from={source} is of another task: it lacks {_some(missing)} and has {_some(unknown)}, which "
            "this task does not have"
        )
    divided = {name for name, parameter in parameters.items() if hasattr(parameter, "ds_id")}
    whole = {name: value for name, value in weights.items() if name not in divided}
    module.load_state_dict(whole, strict=False)
    if divided:
        deepspeed = import_deepspeed(next(iter(parameters.values())).device)
        for name in sorted(divided):  # one at a time: together they may not fit
            with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0), torch.no_grad():
                if dist.get_rank() == 0:
                    parameters[name].copy_(weights[name])


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else "nothing"
