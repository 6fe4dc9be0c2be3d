"""The end of a run on its workers: the exported model, the picture of the curves, the summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from omni_platform import storage
from omni_platform.train.config import TrainConfig
from omni_platform.train.curves import draw_curves
from omni_platform.train.engine import Engine
from omni_platform.train.export import Origin, export_folder, write_export
from omni_platform.train.notes import Notes
from omni_platform.train.state import Progress
from omni_platform.train.task import Task

_NOT_CURVES = ("epoch", "tokens_per_s", "data_wait_share", "padding_share")


def finish(notes: Notes, config: TrainConfig, task: Task, engine: Engine, progress: Progress) -> dict[str, Any]:
    """Export the last step's model and draw the curves on worker 0; every worker calls it and gets the summary."""
    leads = dist.get_rank() == 0
    with engine.whole_weights():
        if leads:
            write_export(config, task, Origin(run_name=config.run_name, step=progress.step, last_step=progress.step))
    if leads:
        picture = _draw(config, progress, notes.history())
        storage.write_bytes(storage.join(config.output_dir, "loss_curves.png"), picture)
        notes.picture("loss_curves.png", picture)
    terms = {n: v for n, v in progress.last.items() if n not in _NOT_CURVES and "/" not in n}
    return {
        "steps": progress.step,
        "epochs": progress.epoch,
        "loss_first": progress.first.get("loss"),
        "loss_last": progress.last.get("loss"),
        **{name: value for name, value in terms.items() if name != "loss"},
        "export": export_folder(config),
    }


def _draw(config: TrainConfig, progress: Progress, history: Mapping[str, Mapping[int, float]]) -> bytes:
    terms = [name for name in progress.last if name not in (*_NOT_CURVES, "loss") and "/" not in name]
    shown = ("loss", *terms, "learning_rate")
    return draw_curves({name: history.get(f"train/{name}", {}) for name in shown}, title=config.run_name)
