"""Decoding under a deadline: a child process that can be killed, because native code cannot be interrupted.

A clip can make a decoder wait forever (a stalled file system, a crafted file) or crash. The child lives on
from clip to clip and is started anew after a kill. It also reads the file, so that a hanging store counts as
slow.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from omni_platform.media.decode import DecodedClip, decode_clip
from omni_platform.media.probe import MediaError

_START_DEADLINE_S = 120.0


class DecodeProcess:
    """A decoder in a child process. Not for sharing between threads; `close` it, or use it in a `with`."""

    def __init__(self) -> None:
        self._child: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def decode(self, source: str | Path | bytes, *, deadline_s: float, **options: Any) -> DecodedClip:
        """`decode_clip(source, **options)`, cut off after `deadline_s`.

        Raises `MediaError` as `decode_clip` does, and with the reason `deadline`, or `undecodable` where the
        clip brought the child down.
        """
        name = str(source) if not isinstance(source, bytes) else f"the given media ({len(source)} bytes)"
        pipe = self._start()
        try:
            pipe.send((source, options))
            if not pipe.poll(deadline_s):
                self.close()
                raise MediaError("deadline", f"{name} was not decoded within {deadline_s:g} s")
            return _receive(pipe)
        except (EOFError, OSError):
            status = self._child.wait() if self._child is not None else None
            self.close()
            detail = f"{name} brought the decoder down (exit status {status})"
            raise MediaError("undecodable", detail) from None

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._pipe is not None:
            self._pipe.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = self._pipe = None

    def __enter__(self) -> DecodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Connection:
        """The pipe to a child that is ready: starting it is no part of a clip's deadline."""
        if self._child is not None and self._child.poll() is None and self._pipe is not None:
            return self._pipe
        self.close()
        ours, theirs = Pipe()
        # A fresh interpreter: a forked one would inherit the threads and locks of Ray.
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        roots = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._pipe = ours
        theirs.close()
        if not ours.poll(_START_DEADLINE_S) or ours.recv() != "ready":
            self.close()
            raise RuntimeError("the decoder process did not start; its error is on stderr above")
        return ours


def _receive(pipe: Connection) -> DecodedClip:
    kind, told = pipe.recv()
    if kind == "error":
        raise told
    # Arrays come as plain bytes into place: pickling would hold a clip three times.
    frames = np.empty(told.pop("shape"), np.uint8)
    pipe.recv_bytes_into(frames.data.cast("B"))
    num_samples, waveform = told.pop("num_samples"), None
    if num_samples:
        waveform = np.empty(num_samples, np.float32)
        pipe.recv_bytes_into(waveform.data.cast("B"))
    return DecodedClip(frames=frames, waveform=waveform, **told)


def _serve(pipe: Connection) -> None:
    """The child's loop: one clip after the other, until the parent hangs up."""
    pipe.send("ready")
    while True:
        source, options = pipe.recv()
        try:
            clip = decode_clip(source, **options)
        except Exception as error:
            pipe.send(("error", _portable(error, source)))
            continue
        told = {"shape": clip.frames.shape, "num_samples": 0 if clip.waveform is None else len(clip.waveform)}
        pipe.send(("clip", {**told, "sample_fps": clip.sample_fps, "duration_s": clip.duration_s}))
        pipe.send_bytes(np.ascontiguousarray(clip.frames).data.cast("B"))
        if clip.waveform is not None and len(clip.waveform):
            pipe.send_bytes(clip.waveform.data.cast("B"))


def _portable(error: Exception, source: str | Path | bytes) -> MediaError:
    """Whatever went wrong belongs to this clip: a store that answers 403, a header that no one foresaw."""
    if isinstance(error, MediaError):
        return error
    name = "the given media" if isinstance(source, bytes) else str(source)
    reason = "unreadable" if isinstance(error, OSError) else "undecodable"
    return MediaError(reason, f"{name}: {type(error).__name__}: {error}")


def _die_with_parent(parent: int) -> None:
    """A parent that is killed cannot tell a child that hangs in native code."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(handle: int) -> None:
    """Run as `python -m omni_platform.media.decode_process HANDLE` by `DecodeProcess` only."""
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        # By its proper name: run as __main__, the module would have a second copy of every class.
        importlib.import_module("omni_platform.media.decode_process")._serve(Connection(handle))
    except (EOFError, OSError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
