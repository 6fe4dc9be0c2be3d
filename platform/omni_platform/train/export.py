"""The exported model of a run, with a note of which step it is."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_platform import storage
from omni_platform.artifacts import folder_fingerprint
from omni_platform.staging import commit_folder, publish_folder, stage_folder
from omni_platform.train.config import TrainConfig
from omni_platform.train.task import Task

EXPORT = "export"
"""The folder of the exported model in output_dir."""
ORIGIN_NAME = "training.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which moment of which run an export is; kept in it as `training.json`."""

    run_name: str
    step: int
    last_step: int
    """The last step of the run."""
    chosen_by: str = "last step"
    """The evaluation's metric that chose the step, or `last step`."""
    value: float | None = None
    """Of that metric."""


def export_folder(config: TrainConfig) -> str:
    """Where the run's model goes: a path or URI."""
    return storage.join(config.output_dir, EXPORT)


def write_export(config: TrainConfig, task: Task, origin: Origin) -> None:
    """Write the task's model, replacing an older export whole; `training.json` is its marker, written last.

    The caller holds the lease of output_dir.
    """
    destination = export_folder(config)
    if storage.is_remote(destination):
        with tempfile.TemporaryDirectory(prefix="export-") as scratch:
            task.export(Path(scratch))
            publish_folder(Path(scratch), destination, marker=ORIGIN_NAME, data=_origin_bytes(origin, Path(scratch)))
        return
    staging = stage_folder(destination, EXPORT, fresh=True)
    task.export(Path(staging))
    commit_folder(staging, destination, marker=ORIGIN_NAME, data=_origin_bytes(origin, Path(staging)))


def read_origin(config: TrainConfig) -> dict[str, Any] | None:
    """The fields of `Origin`, and the export's `fingerprint`; None where this machine sees no finished export."""
    try:
        return json.loads(storage.read_bytes(storage.join(export_folder(config), ORIGIN_NAME)))
    except FileNotFoundError:
        return None


def _origin_bytes(origin: Origin, folder: Path) -> bytes:
    fields = {**dataclasses.asdict(origin), "fingerprint": folder_fingerprint(folder)}
    return (json.dumps(fields, indent=1) + "\n").encode()
