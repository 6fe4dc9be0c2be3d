"""The end of a run: the exported model, the picture of the curves, the registered version, the summary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from omni_platform.tracking import TrackedRun, metric_history, register_model
from omni_platform.train.checkpoint import gather
from omni_platform.train.config import TrainConfig
from omni_platform.train.curves import draw_curves
from omni_platform.train.engine import Engine
from omni_platform.train.state import Progress
from omni_platform.train.task import Task

_NOT_CURVES = ("epoch", "tokens_per_s", "data_wait_share", "padding_share")


def finish(run: TrackedRun, config: TrainConfig, task: Task, engine: Engine, progress: Progress) -> dict[str, Any]:
    """Export, draw and register on worker 0; every worker calls it and gets the summary."""
    leads = dist.get_rank() == 0
    export = Path(config.output_dir) / "export"
    with engine.whole_weights():
        if leads:
            _export(task, export)
    version = None
    if leads:
        _draw(run, config, progress)
        if config.registered_model_name:
            version = register_model(
                export,
                config.registered_model_name,
                config.alias,
                run.run_id,
                step=progress.step,
                tracking_uri=run.tracking_uri,
            )
    terms = {n: v for n, v in progress.last.items() if n not in _NOT_CURVES and "/" not in n}
    return {
        "steps": progress.step,
        "epochs": progress.epoch,
        "loss_first": progress.first.get("loss"),
        "loss_last": progress.last.get("loss"),
        **{name: value for name, value in terms.items() if name != "loss"},
        "export": str(export),
        "model_version": gather(version)[0],
    }


def _export(task: Task, export: Path) -> None:
    """Write beside, then put in place: a reader never sees half a model."""
    aside = export.with_name(f".{export.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    task.export(aside)
    shutil.rmtree(export, ignore_errors=True)
    aside.rename(export)


def _draw(run: TrackedRun, config: TrainConfig, progress: Progress) -> None:
    terms = [name for name in progress.last if name not in (*_NOT_CURVES, "loss") and "/" not in name]
    shown = ("loss", *terms, "learning_rate")
    histories = {name: metric_history(run, f"train/{name}") for name in shown}
    picture = Path(config.output_dir) / "loss_curves.png"
    draw_curves(histories, picture, title=config.run_name)
    run.client.log_artifact(run.run_id, str(picture))
