"""The decoder process: `python -m omni_platform.media.decode_child DESCRIPTOR MEMORY_BYTES`, by `DecodeProcess` only.

It imports everything, locks itself down, says so, and then decodes one open file after the other. It never sees
a name that it could open.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import pkgutil
import socket
import sys
import threading
import time
from typing import Any, BinaryIO

import av
import numpy as np

from omni_platform.media.decode import decode_clip
from omni_platform.media.decode_channel import Channel, ChannelError
from omni_platform.media.errors import MediaError
from omni_platform.media.sandbox import SandboxLimits, limit_cpu, lock_down

BEGUN = b"begun"
"""What the caller hears when a clip has arrived: what happens from here on is that clip's doing."""
CANCEL = b"cancel"
"""What the caller sends in the middle of a clip that it no longer wants."""


def serve(channel: Channel, layers: tuple[str, ...]) -> None:
    """One clip after the other, until the caller hangs up."""
    channel.send(json.dumps({"ready": layers}).encode())
    while True:
        message = channel.receive()
        if message == CANCEL:
            continue  # it crossed the answer to the clip that it meant
        request = pickle.loads(message)  # from the caller, who is trusted
        with channel.receive_file() as file:
            channel.send(BEGUN)
            _answer(channel, file, **request)


def _answer(
    channel: Channel, file: BinaryIO, *, name: str, deadline_s: float, cpu_s: float, options: dict[str, Any]
) -> None:
    watch = _Watch(channel, deadline_s, cpu_s)
    limit_cpu(cpu_s)
    try:
        clip = decode_clip(file, name=name, should_stop=watch.should_stop, **options)
    except (MemoryError, MediaError) as error:
        # The decoder reports a lack of memory as a fault of the clip, with the cause behind it.
        if isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError):
            _refuse(channel, "too_large", f"{name} takes more memory to decode than a clip may", out_of_memory=True)
            return
        _refuse(channel, watch.reason or error.reason, watch.detail(name) or error.detail)
    except Exception as error:
        # Whatever went wrong belongs to this clip: a header that no one foresaw. The words of libraries can
        # hold paths and source lines, so only the kind of error is reported.
        _refuse(channel, "undecodable", f"{name} cannot be decoded ({type(error).__name__})")
    else:
        frames = np.ascontiguousarray(clip.frames)
        sound = [] if clip.waveform is None else [np.ascontiguousarray(clip.waveform)]
        reply = {
            "shape": frames.shape,
            "num_samples": None if clip.waveform is None else len(clip.waveform),
            "sample_fps": clip.sample_fps,
            "duration_s": clip.duration_s,
        }
        channel.send(json.dumps(reply).encode(), frames, *sound)


def _refuse(channel: Channel, reason: str, detail: str, *, out_of_memory: bool = False) -> None:
    channel.send(json.dumps({"reason": reason, "detail": detail, "out_of_memory": out_of_memory}).encode())


class _Watch:
    """Looks between frames whether a clip is still wanted and within its time."""

    def __init__(self, channel: Channel, deadline_s: float, cpu_s: float) -> None:
        self._channel = channel
        self._until_s = time.monotonic() + deadline_s
        self._cpu_until_s = time.process_time() + cpu_s
        self.reason: str | None = None

    def should_stop(self) -> bool:
        if self.reason is None:
            if self._channel.arrived(0):
                self._channel.receive()
                self.reason = "cancelled"
            elif time.monotonic() > self._until_s or time.process_time() > self._cpu_until_s:
                self.reason = "deadline"
        return self.reason is not None

    def detail(self, name: str) -> str | None:
        """What is reported instead of the decoder's own words."""
        words = {"cancelled": "is no longer wanted", "deadline": "was not decoded within its time"}
        return f"{name} {words[self.reason]}" if self.reason is not None else None


def _die_with_parent(parent: int) -> None:
    """A caller that is killed cannot tell a process that hangs in native code."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _warm_up() -> None:
    """Import what libraries import only when they are used: afterwards no file can be opened.

    All of PyAV, and whatever else a whole, a cut and a foreign clip lead to.
    """
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.startswith(("av.datasets", "av.__main__")):
            importlib.import_module(module.name)
    whole = _small_clip()
    for content in (whole, whole[: len(whole) // 2], b"no media"):
        try:
            decode_clip(io.BytesIO(content), name="nothing")
        except MediaError as error:
            str(error)


def _small_clip() -> bytes:
    """Half a second of grey and of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video: Any = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio: Any = container.add_stream("pcm_s16le", rate=8000)
        audio.layout = "stereo"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="stereo")
        silence.sample_rate = 8000
        grey = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24") for _ in range(5)]
        for stream, frames in ((audio, [silence]), (video, grey)):
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))
    return file.getvalue()


def main(descriptor: int, memory_bytes: int) -> None:
    """Run the process; returns when the caller hangs up."""
    channel = Channel(socket.socket(fileno=descriptor))
    parent = os.getppid()
    _warm_up()
    layers = lock_down(SandboxLimits(memory_bytes=memory_bytes))
    threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    try:
        serve(channel, layers)
    except (ChannelError, OSError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
