"""Messages between a decoder process and its caller, over a pair of sockets.

The caller trusts nothing that comes back: replies are JSON of bounded size and plain bytes, never pickles, which
would run what a captured decoder put into them.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Any, BinaryIO

_LENGTH = struct.Struct("=I")
_MAX_MESSAGE_BYTES = 1 << 20


class ChannelError(OSError):
    """The other side hung up, is too late, or sent something that is no message."""


class Channel:
    """One end: short messages, raw arrays, and open files. Not for sharing between threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, message: bytes, *arrays: Any) -> None:
        """A message, and arrays (contiguous) that the receiver puts into place itself."""
        self._socket.settimeout(None)
        self._socket.sendall(_LENGTH.pack(len(message)) + message)
        for array in arrays:
            self._socket.sendall(_as_bytes(array))

    def send_file(self, file: BinaryIO) -> None:
        """An open file, as a descriptor of its own in the receiving process."""
        socket.send_fds(self._socket, [b"f"], [file.fileno()])

    def arrived(self, timeout_s: float) -> bool:
        """Whether something (a message, or the end) can be received within the time."""
        # poll and not select: a process with many files has descriptors above select's 1024.
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))

    def receive(self, until_s: float | None = None) -> bytes:
        """The next message; `ChannelError` where it does not come until that time (`time.monotonic`)."""
        length = bytearray(_LENGTH.size)
        self.receive_into(length, until_s)
        (size,) = _LENGTH.unpack(length)
        if size > _MAX_MESSAGE_BYTES:
            raise ChannelError(f"a message of {size} bytes")
        message = bytearray(size)
        self.receive_into(message, until_s)
        return bytes(message)

    def receive_into(self, target: Any, until_s: float | None = None) -> None:
        """Fill a writable array or buffer."""
        view = _as_bytes(target)
        while len(view):
            if until_s is not None:
                self._socket.settimeout(max(0.001, until_s - time.monotonic()))
            received = self._socket.recv_into(view)
            if received == 0:
                raise ChannelError("the other side hung up")
            view = view[received:]

    def receive_file(self) -> BinaryIO:
        """The file of `send_file`; read it from the position that it was sent at."""
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if len(descriptors) != 1:
            raise ChannelError("no file came with the message")
        return os.fdopen(descriptors[0], "rb", buffering=0)


def _as_bytes(array: Any) -> memoryview:
    view = memoryview(array)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view without elements cannot be cast
