"""A lease on an output: who writes there now, so that a second run is refused before it has done any work.

The lease is a small file in the output's work folder (`.NAME.work` beside the output), rewritten every few seconds.
A holder that has been silent for several heartbeats, or whose process has ended on this machine, is replaced with a
line that says so.

How strong it is. On a file system every decision is made under an exclusive file lock, so exactly one run gets the
lease (on a network file system as far as it honours `flock`). On an object store the file is created by a conditional
put, which decides it where the server honours `If-None-Match`; after a pause the file is read back, and whoever does
not find its own token there gives up. Without conditional puts, two runs that start within that pause of each other are
still separated; a run that is suspended for longer than the lease lives finds out at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omni_platform import storage
from omni_platform.holder import Holder, process_ended, this_process

HEARTBEAT_S = 5.0
_FILE, _LOCK = "lease.json", "lease.lock"
_READ_BACK_PAUSE_S = 1.0
"""Longer than the time between reading a lease and writing one."""


class RefusedError(ValueError):
    """A run that must not start as things are; the message says why and what can be done."""


class LeaseHeldError(RefusedError):
    """Another run writes into this output; the message names it and says what can be done."""


class LeaseLostError(RuntimeError):
    """Another run has taken the output over, because this one showed no sign of life for too long."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, destination: str, holder: Holder, on_lost: Callable[[], None]) -> None:
        self.destination, self.holder = destination, holder
        self._on_lost, self._lost, self._closing = on_lost, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        return self.holder.token

    def check(self) -> None:
        """Raise `LeaseLostError` where the output is no longer this run's. Called before anything is published."""
        if self._lost.is_set() or not is_held(self.destination, self.token):
            raise LeaseLostError(
                f"{self.destination} was taken over by another run while this one showed no sign of life; "
                "nothing more is written there. Decide which of the two is to continue"
            )

    def release(self) -> None:
        """Give the output back; the work folder goes where nothing is left in it."""
        self._closing.set()
        self._thread.join()
        with _exclusive(self.destination):
            if is_held(self.destination, self.token):
                storage.remove(_file(self.destination))
            _remove_empty_work_folder(self.destination)

    def _beat(self) -> None:
        while not self._closing.wait(self.holder.heartbeat_s):
            try:
                with _exclusive(self.destination):
                    found = read_holder(self.destination)
                    if found is not None and found.token != self.token:
                        break
                    self.holder = dataclasses.replace(self.holder, beat_at_s=time.time())
                    _write(self.destination, self.holder)
            except LeaseHeldError:
                break
            except (
                OSError
            ):  # a store that is away for a short time; `check` is what decides before something is published
                continue
        else:
            return
        self._lost.set()
        print(f"{self.destination}: another run has taken this output over", flush=True)
        self._on_lost()


@contextmanager
def hold(
    destination: str | Path,
    *,
    owner: str,
    heartbeat_s: float = HEARTBEAT_S,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[Lease]:
    """Hold an output (a folder or its URI) for the length of the block. Raises `LeaseHeldError` at once.

    `on_lost` is called in another thread if the lease is taken away.
    """
    lease = _acquire(storage.absolute(destination).rstrip("/"), owner, heartbeat_s, on_lost)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def hold_all(destinations: Sequence[str | Path], **options: Any) -> Iterator[list[Lease]]:
    """Hold several outputs, or none of them; the options are those of `hold`."""
    with ExitStack() as stack:
        yield [stack.enter_context(hold(destination, **options)) for destination in destinations]


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """End the process with the message of a refusal and status 1: for the entry point of a job."""
    try:
        yield
    except RefusedError as error:
        raise SystemExit(f"refused: {error}") from None


def is_held(destination: str | Path, token: str) -> bool:
    """Whether the holder with this token still has the output; any process may ask."""
    found = read_holder(destination)
    return found is not None and found.token == token


def read_holder(destination: str | Path) -> Holder | None:
    """Who holds an output according to its lease file, alive or not. `LeaseHeldError` where nobody can be named."""
    file = _file(destination)
    try:
        return Holder(**json.loads(storage.read_bytes(file)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise LeaseHeldError(
            f"{destination} has a lease that this version cannot read: {file}. If no other run writes there, remove it"
        ) from None


def work_folder(destination: str | Path) -> str:
    """The folder beside an output for its lease and for what is staged."""
    uri = storage.absolute(destination).rstrip("/")
    name = uri.rpartition("/")[2]
    if not name or (storage.is_remote(uri) and storage.parent(uri).endswith("/")):
        return storage.join(uri, ".work")  # a whole bucket has nothing beside it
    return storage.join(storage.parent(uri), f".{name}.work")


def _remove_empty_work_folder(destination: str) -> None:
    """Remove the work folder if nothing is in it (an object store has no empty folders). Within `_exclusive`."""
    if storage.is_remote(destination):
        return
    folder = storage.local_path(work_folder(destination))
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _acquire(destination: str, owner: str, heartbeat_s: float, on_lost: Callable[[], None]) -> Lease:
    mine = this_process(owner, heartbeat_s)
    before = read_holder(destination)
    if before is not None and not _is_gone(destination, before):
        raise LeaseHeldError(_refusal(destination, before))
    with _exclusive(destination):
        found = read_holder(destination)
        if found is not None and (before is None or found.token != before.token):
            raise LeaseHeldError(_refusal(destination, found))  # somebody was quicker
        if found is not None:
            print(
                f"{destination}: taking over from {found.owner} (process {found.pid} on {found.host}), which "
                f"{'has ended' if process_ended(found) else 'shows no sign of life any more'}",
                flush=True,
            )
        if storage.is_remote(destination):
            _create_remote(destination, mine, replaces=found)
        else:
            _write(destination, mine)
    return Lease(destination, mine, on_lost)


def _create_remote(destination: str, mine: Holder, *, replaces: Holder | None) -> None:
    if replaces is not None:
        storage.remove(_file(destination))
    with contextlib.suppress(FileExistsError):
        storage.create_bytes(_file(destination), _content(mine))
    time.sleep(_READ_BACK_PAUSE_S)
    found = read_holder(destination)
    if found is None or found.token != mine.token:
        raise LeaseHeldError(
            f"{destination}: another run took it at the same time; try again" if found is None
            else _refusal(destination, found)
        )  # fmt: skip


def _is_gone(destination: str, holder: Holder) -> bool:
    """Whether a holder has ended here, or has been silent for its lifetime.

    Clocks of two machines differ, so one that seems silent is watched for another two heartbeats.
    """
    if process_ended(holder):
        return True
    if time.time() - holder.beat_at_s < holder.lifetime_s:
        return False
    time.sleep(2 * holder.heartbeat_s)
    found = read_holder(destination)
    return found is None or (found.token, found.beat_at_s) == (holder.token, holder.beat_at_s)


def _refusal(destination: str, holder: Holder) -> str:
    silent_s = max(0.0, time.time() - holder.beat_at_s)
    return (
        f"{destination} is being written by {holder.owner} (process {holder.pid} on {holder.host}, since "
        f"{holder.started_at}, last sign of life {silent_s:.0f} s ago). Wait for it, end it, or choose another place; "
        f"if it is dead, it can be replaced {holder.lifetime_s:.0f} s after its last sign of life"
    )


def _file(destination: str | Path) -> str:
    return storage.join(work_folder(destination), _FILE)


def _content(holder: Holder) -> bytes:
    return (json.dumps(dataclasses.asdict(holder), indent=1) + "\n").encode()


def _write(destination: str, holder: Holder) -> None:
    storage.write_bytes(_file(destination), _content(holder))


@contextmanager
def _exclusive(destination: str) -> Iterator[None]:
    """On a file system: nobody else decides about this lease within the block."""
    if storage.is_remote(destination):
        yield
        return
    path = storage.local_path(work_folder(destination)) / _LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = path.open("w")
        except FileNotFoundError:  # the work folder was removed between the two calls
            continue
        with contextlib.suppress(OSError):  # a file system without locks: then as strong as its renames
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(handle.fileno()), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        handle.close()  # it was removed while we waited; whoever comes next locks another file
    with handle:
        yield
