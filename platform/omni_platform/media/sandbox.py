"""What a process takes from itself before it reads the first byte of a stranger's file.

Codecs are large, written in C, and are handed files made to break them. Each layer here is one the kernel may or
may not offer; what is missing is left out, and `lock_down` says which ones hold:

    limits       memory, CPU seconds, no file can grow, few descriptors, no core dump
    privileges   no new ones through programs, and no capabilities of root
    landlock     no file can be opened, no TCP port reached (Linux 5.13; TCP since 6.7)
    namespace    an empty network
    syscalls     no opening, connecting, executing or tracing at all (seccomp)

A process that has been locked down works on descriptors that it already holds, and on nothing else.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from omni_platform.media.syscall_filter import install_filter

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same number on every architecture
_LANDLOCK_VERSION_FLAG = 1
_ADDRESS_SPACE_SLACK_BYTES = 4 << 30
_CPU_GRACE_S = 5


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What a locked-down process may use."""

    memory_bytes: int
    """Memory on top of what the process holds when it is locked down."""
    open_files: int = 64
    """Descriptors at once."""


def lock_down(limits: SandboxLimits, layers: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Lock this process down for good, and name the layers that hold.

    Call it before any thread is started (Landlock holds for the calling thread and its children) and after
    everything has been imported: nothing can be opened afterwards. `layers` picks some of them.
    """
    wanted = _LAYERS if layers is None else {name: _LAYERS[name] for name in layers}
    return tuple(name for name, apply in wanted.items() if _holds(apply, limits))


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process (SIGXCPU) `seconds` of CPU time from now, and a few more.

    The backstop behind a decoder that watches its own clock: native code that never returns does not look.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    total_s = used.ru_utime + used.ru_stime + seconds + _CPU_GRACE_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(total_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _holds(apply: Callable[[SandboxLimits], bool], limits: SandboxLimits) -> bool:
    try:
        return apply(limits)
    except (OSError, ValueError, AttributeError):  # an old kernel, another system, a limit set lower already
        return False


def _limit_resources(limits: SandboxLimits) -> bool:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if sys.platform != "linux":
        return False  # macOS accepts a limit on memory and does not keep it
    _lower(resource.RLIMIT_DATA, _status_bytes("VmData") + limits.memory_bytes)
    _lower(resource.RLIMIT_AS, _status_bytes("VmSize") + limits.memory_bytes + _ADDRESS_SPACE_SLACK_BYTES)
    return True


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _status_bytes(field: str) -> int:
    """A size of this process as the kernel counts it, e.g. VmData: private memory that can be written."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _drop_privileges(limits: SandboxLimits) -> bool:
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    header, nothing = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    return libc.capset(header, nothing) == 0


def _restrict_landlock(limits: SandboxLimits) -> bool:
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG)
    if version < 1 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    # Every kind of access this kernel knows is handled, and no rule allows any of it.
    files = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals to others
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", files, network, scopes)[:size]
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        return libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _leave_network(limits: SandboxLimits) -> bool:
    libc = _libc()
    # Root has its own right to a new network; anyone else needs a new user as well.
    return libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


def _filter_syscalls(limits: SandboxLimits) -> bool:
    return _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and install_filter()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


# In this order: each layer forbids what the ones before it still need.
_LAYERS: dict[str, Callable[[SandboxLimits], bool]] = {
    "limits": _limit_resources,
    "namespace": _leave_network,
    "privileges": _drop_privileges,
    "landlock": _restrict_landlock,
    "syscalls": _filter_syscalls,
}
SANDBOX_LAYERS = tuple(_LAYERS)
"""All layers there are, by name."""
_COVERED_BY = {
    "files": {"landlock", "syscalls"},
    "the network": {"namespace", "syscalls"},
    "all memory": {"limits"},
}


def exposed_by(layers: tuple[str, ...]) -> list[str]:
    """What a process with only these layers can still reach. Layers overlap: containers rarely allow namespaces."""
    return [what for what, any_of in _COVERED_BY.items() if not any_of & set(layers)]
