"""Runs whose power goes in the middle of a save: two processes without Ray, one of which dies writing a file.

`python torn_saves.py spec.json` in each, with RANK set. The store is a real folder behind a file system that kills
its process when a certain file of a certain checkpoint is about to be written.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import torch.distributed as dist
from faults import end, launch
from fsspec.implementations.local import LocalFileSystem
from toy_runs import config
from toy_task import ToyRows, ToyTask

from omni_platform.tracking import RunIntent, Telemetry, metric_history, plan_run
from omni_platform.train.checkpoint import Storage
from omni_platform.train.config import TrainConfig
from omni_platform.train.loop import Job, work
from omni_platform.train.place import Place


@dataclass(frozen=True, kw_only=True)
class TornStory:
    """A run that died in a save, started again."""

    losses: dict[int, float]
    exit_codes: list[list[int]]
    """Of both processes, start by start."""
    found: list[str]
    """The files of the newest checkpoint's folder between the two starts."""
    resumed_from: list[int]
    log: str


def endure_torn_save(folder: Path, tracking_uri: str, *, dies_writing: str, **settings: Any) -> TornStory:
    """Run until a file that matches `dies_writing` (a regular expression) is about to be written, then run again."""
    whole = config(folder, "torn", tracking_uri=tracking_uri, async_save=False, **settings)
    run = plan_run(run_name="torn", run_folder=folder / "store" / "torn", output_dir=folder, tracking_uri=tracking_uri)
    spec, log = folder / "spec.json", folder / "log.txt"
    codes: list[list[int]] = []
    found: list[str] = []
    for pattern in (dies_writing, ""):
        spec.write_text(json.dumps({"config": whole, "run": vars(run), "dies_writing": pattern}))
        command = [sys.executable, __file__, str(spec), f"file://{folder}/rendezvous-{len(codes)}"]
        # A folder of their own for what they download: it is named after the run, and so is another test's.
        shared = {"TMPDIR": str(folder), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        ranks = ({"RANK": rank, "LOCAL_RANK": rank} for rank in "01")
        codes.append(end([launch(command, log, **shared, **own) for own in ranks]))
        if pattern:
            newest = max((folder / "store" / "torn").glob("checkpoint-*"))
            found = sorted(str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file())
    text = log.read_text()
    with Telemetry(run, owner=True) as telemetry:
        assert telemetry.settle(60.0).unsent == 0
        assert telemetry.run is not None
        losses = metric_history(telemetry.run, "train/loss")
    return TornStory(
        losses=losses,
        exit_codes=codes,
        found=found,
        resumed_from=[int(step) for step in re.findall(r"resumed from step (\d+)", text)],
        log=text,
    )


class DyingFiles(LocalFileSystem):
    """The local files, until one that matches is about to be written: then the process is killed."""

    cachable = False

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = re.compile(pattern)

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        if "w" in mode and self._pattern.pattern and self._pattern.search(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, mode, block_size, **kwargs)


def main(spec: Path, rendezvous: str) -> None:
    torch.set_num_threads(1)
    order, rank = json.loads(spec.read_text()), int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    files = DyingFiles(order["dies_writing"])
    given = TrainConfig(**order["config"])
    job = Job(
        config=given,
        build_task=ToyTask,
        open_rows=functools.partial(ToyRows, 50),
        run=RunIntent(**order["run"]),
    )
    place = Place(
        device=torch.device("cpu"),
        storage=Storage(
            files=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files)),
            folder=str(spec.parent / "store" / given.run_name),
        ),
        leads_node=rank == 0,
        stop_requested=lambda: False,
        report=lambda figures, path: None,
    )
    work(job, place)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
