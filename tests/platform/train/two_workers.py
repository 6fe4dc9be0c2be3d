"""Runs training without Ray: `python two_workers.py spec.json` in each process, with RANK and WORLD_SIZE set.

The spec lists attempts (`config`, `die_after`), run one after the other; worker 0 writes what they returned.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from full_disk import full_disk
from toy_task import ToyRows, ToyTask

from omni_platform.lease import LeaseLostError
from omni_platform.tracking import RunIntent, Telemetry, plan_run
from omni_platform.train.checkpoint import Storage, gather
from omni_platform.train.config import TrainConfig
from omni_platform.train.identity import ResumeError, settings_identity
from omni_platform.train.loop import Job, work
from omni_platform.train.place import Place


class PowerCut(Exception):  # noqa: N818 - what happens to it, not what it does wrong
    """What ends an attempt without a checkpoint; every worker has it at the same step."""


class StopAfter:
    """Raises PowerCut after the given number of steps of an attempt, or asks to stop."""

    def __init__(self, steps: int | None, *, politely: bool) -> None:
        self._left, self._politely = steps, politely

    def __call__(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        if self._left == 0 and not self._politely:
            raise PowerCut
        return self._left == 0


def attempt(spec: dict[str, Any], tracking_uri: str) -> dict[str, Any]:
    config = TrainConfig(**spec["config"])
    rank, folder = dist.get_rank(), Path(config.output_dir) / "checkpoints"
    intent = None
    if rank == 0:
        intent = plan_run(
            run_name=config.run_name,
            run_folder=folder / config.run_name,
            output_dir=config.output_dir,
            tracking_uri=tracking_uri,
        )
    intent = gather(intent)[0]
    job = Job(
        config=config,
        build_task=ToyTask,
        open_rows=functools.partial(ToyRows, 50),
        run=intent,
        settings_identity=settings_identity(config),
    )
    place = Place(
        device=torch.device("cpu"),
        storage=full_disk(folder, config.run_name, spec["full"])
        if spec.get("full")
        else Storage.at(str(folder), config.run_name),
        may_write=lambda: not spec.get("taken"),
        leads_node=rank == 0,
        stop_requested=StopAfter(spec.get("die_after"), politely=spec.get("politely", False)),
        report=lambda figures, path: None,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        outcome = outcome_of(job, place)
    finished = [line for line in said.getvalue().splitlines(keepends=True) if "already finished" in line]
    export = Path(config.output_dir) / "export" / "model.json"
    return {
        **outcome,
        **({"run": delivered(intent)} if rank == 0 else {}),
        "said": "".join(finished),
        "kept": place.storage.steps(),
        "half": [step for step in place.storage.steps(complete=False) if step not in place.storage.steps()],
        "exported": json.loads(export.read_text()) if export.exists() else None,
    }


def delivered(intent: RunIntent) -> str:
    """The run's id, once all that was logged has reached the tracker: the driver's part."""
    with Telemetry(intent, owner=True) as telemetry:
        assert telemetry.settle(60.0).unsent == 0
        assert telemetry.run is not None
        return telemetry.run.run_id


def outcome_of(job: Job, place: Place) -> dict[str, Any]:
    try:
        return work(job, place)
    except PowerCut:
        return {"cut": True}
    except (FloatingPointError, LeaseLostError, ResumeError) as error:
        return {"error": str(error)}


def main(path: Path) -> None:
    torch.set_num_threads(1)
    spec = json.loads(path.read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{path}.rendezvous", rank=rank, world_size=world_size)
    results = [attempt(one, spec["tracking_uri"]) for one in spec["attempts"]]
    if dist.get_rank() == 0:
        path.with_suffix(".results").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
