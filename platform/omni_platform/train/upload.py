"""Checkpoints that are uploaded while training goes on.

A worker's share is written to its local disk, which the step waits for; a thread copies it into the run's storage and
hashes it. When all workers are through, the checkpoint is marked complete: until then it does not count, and the one
before it stays. One checkpoint is on its way at a time.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist

from omni_platform.train.checkpoint import (
    Storage,
    StoreError,
    copy_in,
    discard,
    gather,
    make_room,
    mark_complete,
    own_scratch,
)


class UploadError(RuntimeError):
    """A checkpoint that could not be written to the run's storage; the message names it and the cause."""


class Uploader:
    """One worker's side of the upload; every worker has one and calls the same methods in the same order."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._step = -1
        self._outcome: dict[str, Any] | Exception = {}
        self.aside = own_scratch("checkpoint", storage.folder, dist.get_rank())

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint is on its way: the same on every worker."""
        return self._thread is not None

    @property
    def own_share_done(self) -> bool:
        """Whether this worker's share of a checkpoint on its way has arrived (or failed)."""
        return self._thread is not None and not self._thread.is_alive()

    def clear(self) -> Path:
        """The empty local folder for this worker's share of the next checkpoint."""
        assert not self.in_flight
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir(parents=True)
        return self.aside

    def start(self, step: int) -> None:
        """Begin to upload what lies in the local folder. Every worker calls it.

        Raises UploadError, on every worker, where the storage takes nothing.
        """
        self._step = step
        try:
            make_room(self._storage, step)
        except StoreError as error:
            shutil.rmtree(self.aside, ignore_errors=True)
            raise self._failed(str(error)) from None
        self._thread = threading.Thread(target=self._upload, name="upload", daemon=True)
        self._thread.start()

    def complete(self) -> str:
        """Wait for all workers' shares and mark the checkpoint complete; returns its path. Every worker calls it.

        Raises UploadError, on every worker, where a share did not arrive. What did arrive of it is removed; the
        checkpoints before it are untouched.
        """
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        shutil.rmtree(self.aside, ignore_errors=True)
        failed = isinstance(self._outcome, Exception)
        shares = gather(f"worker {dist.get_rank()}: {self._outcome}" if failed else self._outcome)
        problems = [share for share in shares if isinstance(share, str)]
        try:
            if problems:
                raise StoreError("; ".join(problems))
            return mark_complete(self._storage, self._step, shares)
        except StoreError as error:
            discard(self._storage, self._step)
            raise self._failed(str(error)) from None

    def _failed(self, problem: str) -> UploadError:
        return UploadError(f"checkpoint {self._step} did not reach {self._storage.folder}: {problem}")

    def _upload(self) -> None:
        try:
            self._outcome = copy_in(self._storage, self._step, self.aside)
        except Exception as error:  # told by `complete`, where all workers can hear it
            self._outcome = error
