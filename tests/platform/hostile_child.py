"""A decoder process that has been taken over: run by tests in place of the real one.

The option `attack` of a clip says what it tries; how that went comes back as the detail of a refusal.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
import time
from typing import Any

from omni_platform.media import decode_child
from omni_platform.media.decode_channel import Channel
from omni_platform.media.errors import MediaError


def _attack(attack: str, target: str) -> str:
    if attack == "read":
        return f"read {os.read(os.open(target, os.O_RDONLY), 4)!r}"
    if attack == "write":
        return f"opened {os.open(target, os.O_WRONLY | os.O_CREAT)}"
    if attack == "connect":
        socket.socket().connect(("127.0.0.1", int(target)))
        return "connected"
    if attack == "run":
        os.execv("/bin/true", ["true"])
    if attack == "fork":
        return f"forked {os.fork()}"
    if attack == "signal":
        os.kill(os.getppid(), 0)
        return "signalled"
    if attack == "memory":
        return f"took {len(bytearray(int(target)))}"
    if attack == "environment":
        return f"saw {os.environ.get(target)!r}"
    if attack == "descriptors":
        return f"open are {sorted(int(name) for name in os.listdir('/proc/self/fd'))}"
    if attack == "crash":
        ctypes.string_at(0)
    if attack == "spin":
        soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (min(soft, 1), resource.RLIM_INFINITY))
        while True:
            pass
    if attack == "hang":
        time.sleep(600)
    raise AssertionError(attack)


def _decode(file: Any, *, name: str, should_stop: Any = None, attack: str = "", target: str = "", **_: Any) -> Any:
    if not attack:  # the warm-up
        return None
    if attack == "work":
        while not should_stop():
            time.sleep(0.01)
        raise MediaError("cancelled", "stopped")
    if attack == "memory":
        bytearray(int(target))
    if attack == "surprise":
        raise RuntimeError(f"{__file__}:17: Check failed: [00:00:00] /github/workspace/src/reader.cc")
    try:
        detail = _attack(attack, target)
    except OSError as error:
        detail = f"refused: {type(error).__name__} {error.errno}"
    raise MediaError("attack", detail)


def _lie(channel: Channel, file: Any, *, options: dict[str, Any], **request: Any) -> None:
    replies = {
        "pickle": b"\x80\x04cos\n_exit\n(K\x07tR.",
        "huge": b'{"shape": [1000000, 1000, 1000, 3], "num_samples": 0, "sample_fps": 1, "duration_s": 1}',
        "negative": b'{"shape": [-1, -1, 1, 3], "num_samples": 0, "sample_fps": 1, "duration_s": 1}',
        "partial": b'{"shape": [2, 10, 10, 3], "num_samples": 0, "sample_fps": 1, "duration_s": 1}',
        "list": b"[1, 2]",
    }
    if reply := replies.get(options.get("attack", "")):
        channel.send(reply, b"x" * 10)
        return
    _answer(channel, file, options=options, **request)


if __name__ == "__main__":
    _answer = decode_child._answer
    decode_child._answer = _lie
    decode_child.decode_clip = _decode
    decode_child.main(int(sys.argv[1]), int(sys.argv[2]))
