"""Saving a run's checkpoints as it goes, and going on from the newest of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from omni_platform.lease import LeaseLostError, RefusedError
from omni_platform.train.checkpoint import gather, newest_sound, own_scratch, prune
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import Engine
from omni_platform.train.evaluation import is_due, to_keep
from omni_platform.train.goodput import Goodput
from omni_platform.train.place import Place
from omni_platform.train.plan import Plan
from omni_platform.train.state import (
    Progress,
    load_progress,
    load_random_states,
    save_state,
    saved_world_size,
    seed_everything,
)
from omni_platform.train.upload import Uploader, UploadError


class Saver:
    """Writes checkpoints, and lets go of those that are no longer needed. Every worker has one and calls the same."""

    def __init__(
        self,
        place: Place,
        engine: Engine,
        config: TrainConfig,
        plan: Plan,
        identity: Mapping[str, Any],
        progress: Progress,
        goodput: Goodput,
        note_failure: Callable[[str], None],
    ) -> None:
        """`note_failure` is called on worker 0 with what to report of a checkpoint that could not be written."""
        self._place, self._engine, self._config, self._plan = place, engine, config, plan
        self._identity, self._progress, self._goodput = identity, progress, goodput
        self._note_failure = note_failure
        self._uploader = Uploader(place.storage)
        self._step, self._share_bytes = -1, 0
        self.failure: str | None = None
        """Why the last checkpoint is not there; None where it is (or is on its way)."""

    @property
    def own_share_done(self) -> bool:
        """Whether this worker's share of a checkpoint on its way has arrived."""
        return self._uploader.own_share_done

    def save(self, *, wait: bool, stopped: bool = False) -> None:
        """Write a checkpoint of where the run stands; `wait` until it is complete.

        Where one is still on its way, that one is completed first: the storage then is slower than the run saves.
        A checkpoint that cannot be written (a full disk, a store that is away) is reported and training continues: the
        one before it is still there, and another one follows. `failure` says whether the last one is there. Raises
        `LeaseLostError` where the run's folder is now another run's.
        """
        self.settle()
        refuse_without_lease(self._place, self._config)
        with self._goodput.spend("checkpoint"):
            self._step = self._progress.step
            try:
                self._write(stopped)
                self._uploader.start(self._step)
                if wait:
                    self._publish()
            except UploadError as error:
                self._report_failure(error)

    def complete(self) -> None:
        """Mark the checkpoint that is on its way complete, once it is; a failed upload is reported as in `save`."""
        with self._goodput.spend("checkpoint"):
            try:
                self._publish()
            except UploadError as error:
                self._report_failure(error)

    def _write(self, stopped: bool) -> None:
        """This worker's share on its local disk."""
        folder, progress = self._uploader.clear(), self._progress
        progress.seconds, progress.saved_at_s, progress.stopped = self._goodput.seconds, time.time(), stopped
        self._refuse_full_scratch(folder)
        try:
            self._engine.save(folder / "engine")
            save_state(folder, progress, self._config, self._identity, dist.get_rank())
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            if dist.get_world_size() > 1:
                raise  # the others wait for this worker within the engine's own exchanges, where nothing reaches them
            raise UploadError(f"checkpoint {self._step} could not be written to {folder}: {error}") from error
        self._share_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _refuse_full_scratch(self, folder: Path) -> None:
        """Whether there is space for as much as was written last time, asked of all workers before any of them writes:
        one that fails halfway through the engine's exchanges would leave the others waiting."""
        free = shutil.disk_usage(folder).free
        short = None if free >= self._share_bytes else f"worker {dist.get_rank()}: {folder.parent} has {free:,} bytes"
        if problems := [problem for problem in gather(short) if problem]:
            shutil.rmtree(folder, ignore_errors=True)
            raise UploadError(
                f"checkpoint {self._step} has no space on the local disk: {'; '.join(problems)} free and "
                f"{self._share_bytes:,} are needed; set TMPDIR to a larger disk"
            )

    def _report_failure(self, error: UploadError) -> None:
        self.failure = str(error)
        if dist.get_rank() == 0:
            print(f"{self._config.run_name}: {error}; training continues, older checkpoints are kept", flush=True)
            self._note_failure(self.failure)

    def settle(self) -> None:
        """Wait for a checkpoint that is on its way."""
        if self._uploader.in_flight:
            self.complete()

    def _publish(self) -> None:
        path = self._uploader.complete()
        self.failure = None
        config, storage, total_steps = self._config, self._place.storage, self._plan.total_steps
        if dist.get_rank() == 0:
            if is_due(config, self._step, total_steps):
                self._place.evaluate(self._step)
            prune(storage, config.save_total_limit, also=to_keep(storage, config, total_steps))
        figures = {name: value for name, value in self._progress.last.items() if name == "loss"}
        self._place.report({"step": self._step, **figures}, path)


def refuse_without_lease(place: Place, config: TrainConfig) -> None:
    """Raise `LeaseLostError`, on every worker, where the run's folder was taken over by another run."""
    if not gather(dist.get_rank() > 0 or _may_write(place))[0]:
        raise LeaseLostError(
            f"{config.run_name}: {place.storage.folder} was taken over by another run of this name; this one writes "
            "nothing more"
        )


def _may_write(place: Place) -> bool:
    """A failure here must not leave the other workers waiting; a store that is away takes no checkpoint anyway."""
    try:
        return place.may_write()
    except RefusedError:
        return False
    except OSError:
        return True


def resume(
    place: Place, engine: Engine, config: TrainConfig, identity: Mapping[str, Any], goodput: Goodput
) -> Progress:
    """Continue from the newest sound checkpoint of the run, if there is one. Every worker calls it.

    It may have been saved by another number of workers: the sharded state is divided anew, and random states, which
    belong to one worker each, are seeded anew by step and worker.
    """
    # By the whole folder, not the run's name alone: two stores may hold runs of one name.
    scratch = own_scratch("resume", place.storage.folder)
    found = newest_sound(place.storage, scratch, leads_node=place.leads_node)
    if found is None:
        goodput.begin()
        return Progress()
    step, folder = found
    progress, saved_by = load_progress(folder, config, identity), saved_world_size(folder)
    engine.load(folder / "engine", saved_by=saved_by, leads_node=place.leads_node)
    if saved_by == dist.get_world_size():
        load_random_states(folder, dist.get_rank())
    else:
        seed_everything(config.seed + 1 + dist.get_rank() + 1_000_003 * step)
    dist.barrier()
    if place.leads_node and not place.storage.is_local:
        shutil.rmtree(scratch)
    goodput.resume(progress.seconds, saved_at_s=progress.saved_at_s, stopped=progress.stopped)
    if dist.get_rank() == 0:
        others = "" if saved_by == dist.get_world_size() else f", which {saved_by} workers saved"
        print(f"{config.run_name}: resumed from step {step}{others}", flush=True)
    return progress
