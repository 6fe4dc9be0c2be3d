"""The exported model of a run, with a note of which step it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_platform import storage
from omni_platform.artifacts import folder_fingerprint
from omni_platform.train.config import TrainConfig
from omni_platform.train.task import Task

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
    return storage.join(config.output_dir, "export")


def write_export(config: TrainConfig, task: Task, origin: Origin) -> None:
    """Write the task's model, replacing an older export at once: a reader never sees half a model.

    On an object store, where nothing can be renamed, `training.json` is written last.
    """
    target = export_folder(config)
    if storage.is_remote(target):
        with tempfile.TemporaryDirectory(prefix="export-") as scratch:
            note = _write(Path(scratch), task, origin)
            note.unlink()
            storage.remove(target)
            storage.upload_folder(scratch, target)
            storage.write_bytes(storage.join(target, ORIGIN_NAME), _origin_bytes(origin, Path(scratch)))
        return
    export = storage.local_path(target)
    aside = export.with_name(f".{export.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write(aside, task, origin)
    shutil.rmtree(export, ignore_errors=True)
    aside.rename(export)


def read_origin(config: TrainConfig) -> dict[str, Any] | None:
    """The fields of `Origin`, and the export's `fingerprint`; None where this machine sees no finished export."""
    try:
        return json.loads(storage.read_bytes(storage.join(export_folder(config), ORIGIN_NAME)))
    except FileNotFoundError:
        return None


def _write(folder: Path, task: Task, origin: Origin) -> Path:
    task.export(folder)
    note = folder / ORIGIN_NAME
    note.write_bytes(_origin_bytes(origin, folder))
    return note


def _origin_bytes(origin: Origin, folder: Path) -> bytes:
    fields = {**dataclasses.asdict(origin), "fingerprint": folder_fingerprint(folder)}
    return (json.dumps(fields, indent=1) + "\n").encode()
