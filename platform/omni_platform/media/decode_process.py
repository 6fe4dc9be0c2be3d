"""Decoding in a child process: locked away from the machine, under a deadline, and bounded in memory.

A clip can make a decoder wait forever, crash it, or take it over. The child gets an open file and never a name
(see `sandbox`), it is ended when it does not answer in time, and it lives on from clip to clip otherwise. Files are
found and remote ones copied by the caller's side, under the same deadline: a hanging store counts as slow.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from omni_platform.media.clip_source import name_of, opened
from omni_platform.media.decode import DecodedClip
from omni_platform.media.decode_channel import Channel, ChannelError
from omni_platform.media.decode_child import BEGUN, CANCEL
from omni_platform.media.errors import MediaError
from omni_platform.media.sandbox import exposed_by

logger = logging.getLogger(__name__)

DECODE_MEMORY_BYTES = 3 << 30
"""Memory that decoding one clip may take unless the caller says otherwise."""
_CHILD = "omni_platform.media.decode_child"
_START_DEADLINE_S = 120.0
_GRACE_S = 1.0
"""How long a child may take to notice that a clip is over its time or no longer wanted."""
_POLL_S = 0.05
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")
_reported_layers: set[tuple[str, ...]] = set()


class DecodeProcess:
    """A decoder in a child process. Not for sharing between threads; `close` it, or use it in a `with`."""

    def __init__(self, *, memory_bytes: int = DECODE_MEMORY_BYTES, child: str = _CHILD) -> None:
        """`child` is the module that is run; another one than ours is for tests."""
        self._memory_bytes, self._module = memory_bytes, child
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._is_fresh = True
        self.layers: tuple[str, ...] = ()
        """The layers of the sandbox that hold in the child; empty before the first clip."""

    def decode(
        self,
        source: str | Path | bytes | BinaryIO,
        *,
        deadline_s: float,
        name: str | None = None,
        cpu_s: float | None = None,
        should_stop: Callable[[], bool] | None = None,
        **options: Any,
    ) -> DecodedClip:
        """`decode_clip(source, **options)`, given up after `deadline_s`, or when `should_stop` says so.

        `name` stands for the clip in messages. `cpu_s` bounds CPU time (default: the deadline); `should_stop` is
        asked about twenty times a second.

        Raises `MediaError` as `decode_clip` does, and with the reasons `deadline`, `cancelled`, `too_large` (more
        memory than a clip may take), `unreadable` (it cannot be opened or fetched), or `undecodable` where the clip
        brought the child down.
        """
        name = name or name_of(source)
        stopped = should_stop or _never
        self.start()
        until_s = time.monotonic() + deadline_s
        with opened(source, name, until_s, deadline_s, stopped) as file:
            request = {"name": name, "cpu_s": cpu_s or deadline_s, "options": options}
            while True:
                was_fresh, self._is_fresh = self._is_fresh, False
                try:
                    return self._ask(file, request, until_s, deadline_s, stopped)
                except _OutOfMemoryError as error:
                    # What earlier clips left behind may be what is missing: ask a fresh child once more.
                    if was_fresh:
                        raise MediaError(error.reason, error.detail) from None
                    self.start()

    def start(self) -> None:
        """Start the child unless it runs: its start is no part of a clip's deadline."""
        if self._child is not None and self._child.poll() is None and self._channel is not None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        # A fresh interpreter: a forked one would inherit the threads and locks of Ray, and every open file.
        command = [sys.executable, "-P", "-m", self._module, str(theirs.fileno()), str(self._memory_bytes)]
        with theirs:
            self._child = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._channel, self._is_fresh = Channel(ours), True
        try:
            reply = json.loads(self._channel.receive(time.monotonic() + _START_DEADLINE_S))
        except (OSError, ValueError):
            self.close()
            raise RuntimeError("the decoder process did not start; its error is on stderr above") from None
        self.layers = tuple(reply["ready"])
        _report_layers(self.layers)

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            self._child.kill()
            try:
                self._child.wait(timeout=5)
            except subprocess.TimeoutExpired:  # it waits for a disk that does not answer
                logger.warning("a decoder process (%d) does not end yet", self._child.pid)
        self._child = self._channel = None

    def __enter__(self) -> DecodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self,
        file: BinaryIO,
        request: dict[str, Any],
        until_s: float,
        deadline_s: float,
        stopped: Callable[[], bool],
    ) -> DecodedClip:
        name = request["name"]
        try:
            channel = self._hand_over(file, request, until_s)
            was_cancelled = self._wait(channel, until_s, stopped)
            reply = json.loads(channel.receive(until_s + _GRACE_S))
            if "reason" not in reply:
                clip = _receive_clip(channel, reply, self._memory_bytes, until_s + _GRACE_S)
                if not was_cancelled:
                    return clip
                reply = {"reason": "cancelled", "detail": f"{name} is no longer wanted"}
        except _CancelledError:
            self.close()
            raise MediaError("cancelled", f"{name} is no longer wanted") from None
        except TimeoutError:
            self.close()
            raise MediaError("deadline", f"{name} was not decoded within {deadline_s:g} s") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise self._why_dead(name) from None
        reason, detail = str(reply["reason"]), str(reply.get("detail"))
        if reply.get("out_of_memory"):
            self.close()  # what is left of its memory may be in pieces
            raise _OutOfMemoryError(reason, detail)
        if reason == "deadline":
            detail = f"{name} was not decoded within {deadline_s:g} s"
        raise MediaError(reason, detail)

    def _hand_over(self, file: BinaryIO, request: dict[str, Any], until_s: float) -> Channel:
        """Give a clip to the child. One that has died since its last clip is replaced: this clip did not do it."""
        for child_is_new in (False, True):
            self.start()
            assert self._channel is not None
            channel = self._channel
            try:
                deadline_s = max(0.0, until_s - time.monotonic())
                channel.send(pickle.dumps({**request, "deadline_s": deadline_s}))
                channel.send_file(file)
                if channel.receive(until_s + _GRACE_S) == BEGUN:
                    return channel
            except TimeoutError:
                raise
            except OSError:
                if child_is_new:
                    raise
            self.close()
        raise ChannelError("the child does not begin")

    def _wait(self, channel: Channel, until_s: float, stopped: Callable[[], bool]) -> bool:
        """Wait for the child's answer; True where the clip was withdrawn meanwhile."""
        was_cancelled = False
        until_s += _GRACE_S
        while not channel.arrived(min(_POLL_S, until_s - time.monotonic())):
            if not was_cancelled and stopped():
                channel.send(CANCEL)
                was_cancelled, until_s = True, min(until_s, time.monotonic() + _GRACE_S)
            if time.monotonic() > until_s:
                raise _CancelledError if was_cancelled else TimeoutError
        return was_cancelled

    def _why_dead(self, name: str) -> MediaError:
        child = self._child
        self.close()
        status = child.returncode if child is not None else None
        if status == -signal.SIGXCPU:
            return MediaError("deadline", f"{name} took too much CPU time")
        return MediaError("undecodable", f"{name} brought the decoder down (exit status {status})")


def _never() -> bool:
    return False


class _CancelledError(Exception):
    """The child did not notice that a clip is no longer wanted."""


class _OutOfMemoryError(MediaError):
    """The child had no memory left for a clip."""


def _environment() -> dict[str, str]:
    """What the child needs to start. Keys of stores and services are not for a process that reads strange files."""
    roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **one_thread, "PYTHONPATH": os.pathsep.join(roots)}


def _report_layers(layers: tuple[str, ...]) -> None:
    """Say once what the sandbox consists of here; a warning where something is left open."""
    if layers in _reported_layers:
        return
    _reported_layers.add(layers)
    if exposed := exposed_by(layers):
        logger.warning(
            "a clip that takes over its decoder would reach %s on this machine (layers of the sandbox: %s); decode "
            "clips from strangers on Linux 5.13 or newer, where containers may use seccomp and Landlock",
            *(" and ".join(exposed), ", ".join(layers) or "none"),
        )
    else:
        logger.info("clips are decoded in a sandbox: %s", ", ".join(layers))


def _receive_clip(channel: Channel, reply: dict[str, Any], max_bytes: int, until_s: float) -> DecodedClip:
    """The arrays of a clip into place; ValueError for sizes that no clip within its memory can have."""
    shape, num_samples = [int(side) for side in reply["shape"]], reply["num_samples"]
    if len(shape) != 4 or min(shape) < 0 or np.prod(shape, dtype=object) + 4 * (num_samples or 0) > max_bytes:
        raise ValueError(f"a clip of shape {shape}")
    frames = np.empty(shape, np.uint8)
    channel.receive_into(frames, until_s)
    waveform = None
    if num_samples is not None:
        waveform = np.empty(int(num_samples), np.float32)
        channel.receive_into(waveform, until_s)
    return DecodedClip(
        frames=frames,
        waveform=waveform,
        sample_fps=float(reply["sample_fps"]),
        duration_s=float(reply["duration_s"]),
    )
