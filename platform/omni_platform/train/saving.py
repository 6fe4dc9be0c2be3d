"""Saving a run's checkpoints as it goes, and going on from the newest of them."""

from __future__ import annotations

import shutil
import time

import torch.distributed as dist

from omni_platform.train.checkpoint import newest_sound, own_scratch, prune
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
        self, place: Place, engine: Engine, config: TrainConfig, plan: Plan, progress: Progress, goodput: Goodput
    ) -> None:
        self._place, self._engine, self._config, self._plan = place, engine, config, plan
        self._progress, self._goodput = progress, goodput
        self._uploader = Uploader(place.storage)
        self._step = -1

    @property
    def own_share_done(self) -> bool:
        """Whether this worker's share of a checkpoint on its way has arrived."""
        return self._uploader.own_share_done

    def save(self, *, wait: bool, stopped: bool = False) -> None:
        """Write a checkpoint of where the run stands; `wait` until it is complete.

        Where one is still on its way, that one is completed first: the storage then is slower than the run saves.
        Raises UploadError where the checkpoint is waited for and does not arrive.
        """
        self.settle()
        with self._goodput.spend("checkpoint"):
            folder, progress = self._uploader.clear(), self._progress
            progress.seconds, progress.saved_at_s, progress.stopped = self._goodput.seconds, time.time(), stopped
            self._engine.save(folder / "engine")
            save_state(folder, progress, self._config, self._plan.rows_fingerprint, dist.get_rank())
            self._uploader.start(progress.step)
            self._step = progress.step
            if wait:
                self._publish()

    def complete(self) -> None:
        """Mark the checkpoint that is on its way complete, once it is. A failed upload is told and training goes on:
        the checkpoint before it is still there, and the next one follows."""
        with self._goodput.spend("checkpoint"):
            try:
                self._publish()
            except UploadError as error:
                if dist.get_rank() == 0:
                    print(f"{self._config.run_name}: {error}; going on, the one before it is kept", flush=True)

    def settle(self) -> None:
        """Wait for a checkpoint that is on its way."""
        if self._uploader.in_flight:
            self.complete()

    def _publish(self) -> None:
        path = self._uploader.complete()
        config, storage, total_steps = self._config, self._place.storage, self._plan.total_steps
        if dist.get_rank() == 0:
            if is_due(config, self._step, total_steps):
                self._place.evaluate(self._step)
            prune(storage, config.save_total_limit, also=to_keep(storage, config, total_steps))
        figures = {name: value for name, value in self._progress.last.items() if name == "loss"}
        self._place.report({"step": self._step, **figures}, path)


def resume(place: Place, engine: Engine, config: TrainConfig, plan: Plan, goodput: Goodput) -> Progress:
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
    progress, saved_by = load_progress(folder, config, plan.rows_fingerprint), saved_world_size(folder)
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
