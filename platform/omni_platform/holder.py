"""Who holds a lease: a process, and whether it still lives."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MISSED_HEARTBEATS = 6


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a lease file says."""

    token: str
    """Random; distinguishes one holder from every other."""
    owner: str
    """What the holder does, such as `preprocess` or `training run a`."""
    host: str
    machine: str
    """Boot and process namespace: a process number means something only where this is equal."""
    pid: int
    process_start: str
    """Start time of the process in clock ticks, so that a number used again is not taken for the same process."""
    started_at: str
    beat_at_s: float
    """Unix time of the last sign of life, by the holder's clock."""
    heartbeat_s: float

    @property
    def lifetime_s(self) -> float:
        """Silence after which the lease may be taken over."""
        return self.heartbeat_s * MISSED_HEARTBEATS


def this_process(owner: str, heartbeat_s: float) -> Holder:
    """This process as the holder of a new lease."""
    return Holder(
        token=uuid.uuid4().hex,
        owner=owner,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        beat_at_s=time.time(),
        heartbeat_s=heartbeat_s,
    )


def process_ended(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that is no longer there."""
    return holder.machine == _machine() and _process_start(holder.pid) != holder.process_start


def _process_start(pid: int) -> str:
    """Start time of a living process in clock ticks since boot; empty where there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]


def _machine() -> str:
    """Names the kernel and the process namespace; unique where the system does not report them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4().hex}"
