"""The end of a run: the exported model, the picture of the curves, the registered version, the summary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from omni_platform import storage
from omni_platform.artifacts import CARD_NAME, Card, card_bytes
from omni_platform.config import fingerprint, to_dict
from omni_platform.staging import commit_folder, publish_folder, stage_folder
from omni_platform.tracking import TrackedRun, metric_history, register_model
from omni_platform.train.checkpoint import gather
from omni_platform.train.config import TrainConfig
from omni_platform.train.curves import draw_curves
from omni_platform.train.engine import Engine
from omni_platform.train.state import Progress
from omni_platform.train.task import Task

EXPORT = "export"
"""The folder of the exported model in output_dir."""
_NOT_CURVES = ("epoch", "tokens_per_s", "data_wait_share", "padding_share")


def finish(run: TrackedRun, config: TrainConfig, task: Task, engine: Engine, progress: Progress) -> dict[str, Any]:
    """Export, draw and register on worker 0; every worker calls it and gets the summary."""
    version = None
    with ExitStack() as stack:
        with engine.whole_weights():
            folder = stack.enter_context(_exported(task, config)) if dist.get_rank() == 0 else None
        if folder is not None:
            _draw(run, config, progress)
            if config.registered_model_name:
                version = register_model(
                    folder,
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
        "export": storage.join(config.output_dir, EXPORT),
        "model_version": gather(version)[0],
    }


@contextmanager
def _exported(task: Task, config: TrainConfig) -> Iterator[Path]:
    """Write the model and put it in place whole; gives its folder on this machine for the length of the block."""
    destination = storage.join(config.output_dir, EXPORT)
    card = card_bytes(Card(name=EXPORT, config=to_dict(config), config_fingerprint=fingerprint(config)))
    if storage.is_remote(destination):
        with tempfile.TemporaryDirectory(prefix="export-") as folder:
            task.export(Path(folder))
            publish_folder(Path(folder), destination, marker=CARD_NAME, data=card)
            yield Path(folder)
        return
    staging = stage_folder(destination, EXPORT, fresh=True)
    task.export(Path(staging))
    commit_folder(staging, destination, marker=CARD_NAME, data=card)
    yield storage.local_path(destination)


def _draw(run: TrackedRun, config: TrainConfig, progress: Progress) -> None:
    terms = [name for name in progress.last if name not in (*_NOT_CURVES, "loss") and "/" not in name]
    shown = ("loss", *terms, "learning_rate")
    histories = {name: metric_history(run, f"train/{name}") for name in shown}
    picture = storage.join(config.output_dir, "loss_curves.png")
    storage.write_bytes(picture, draw_curves(histories, title=config.run_name))
    with storage.local_copy(picture) as path:
        run.client.log_artifact(run.run_id, str(path))
