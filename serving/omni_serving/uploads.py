"""Bodies on their way in: bounded in number, bytes and time, and written to disk as they arrive.

Ray Serve's proxy hands a request on as soon as its headers are there, so a client that never sends the rest is the
replica's to end. An incomplete body costs little: the clip in it goes to a temporary file, the rest is small.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.scan import MAX_JSON_BYTES, BodyScanner

logger = logging.getLogger("ray.serve")
_DRAIN_S = 1.0
_WRITE_BYTES = 1 << 20
_MAY_BE_ENDED_AFTER_S = 0.5
"""At capacity, an upload that has sent nothing for so long makes room for a new one."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A request body that has arrived."""

    text: bytes
    """The JSON, with `reference` where the clip's data URI stood."""
    reference: str
    clip: Path | None
    """The clip of the data URI; deleted when the request is over with it."""


@dataclass(eq=False)
class _Open:
    """An upload under way."""

    deadline: asyncio.Timeout
    last_byte_s: float = field(default_factory=time.monotonic)
    num_bytes: int = 0


class Body:
    """A request body piece by piece, over ASGI's `receive`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.finished = False

    async def next_piece(self) -> bytes:
        """The next bytes; `ClientDisconnect` where there will be none."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.finished = not message.get("more_body", False)
        return message.get("body", b"")

    async def drain(self) -> None:
        """Discard for a moment what a refused request still sends.

        A client that is sending sees a connection that breaks, and not the answer that explains it.
        """
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DRAIN_S):
                while not self.finished:
                    await self.next_piece()


class Uploads:
    """The uploads of one replica. Lives on one event loop."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._folder, self._lock = _own_folder(Path(config.upload_dir) if config.upload_dir else _default_parent())
        self._open: set[_Open] = set()
        self._arriving: set[_Open] = set()

    def load(self) -> dict[str, int]:
        """Uploads that are arriving, and the bytes of these and of the clips that are not yet decoded."""
        return {"open_uploads": len(self._arriving), "upload_bytes": sum(upload.num_bytes for upload in self._open)}

    @asynccontextmanager
    async def receive(self, body: Body, content_length: str | None) -> AsyncIterator[Upload]:
        """A body as it arrives; its clip exists and its bytes count until the block ends.

        Raises `RequestError`: 408 where the body comes too slowly, 413 where it is too large, 429 where too many
        uploads or bytes are under way, 400 as `BodyScanner` does; `ClientDisconnect` where the client has gone.
        """
        self._check_length(content_length)
        self._make_room()
        reference = f"upload-{uuid.uuid4().hex}"
        path = self._folder / reference
        upload = _Open(asyncio.timeout(None))
        self._open.add(upload)
        try:
            self._arriving.add(upload)
            try:
                text, found = await self._spool(body, upload, path, reference)
            finally:
                self._arriving.discard(upload)
            yield Upload(text=text, reference=reference, clip=path if found else None)
        finally:
            self._open.discard(upload)
            path.unlink(missing_ok=True)

    def _check_length(self, content_length: str | None) -> None:
        most = (self._config.max_video_bytes + 2) // 3 * 4 + MAX_JSON_BYTES
        if content_length and content_length.isdigit() and int(content_length[:20]) > most:
            raise self._too_large()

    def _make_room(self) -> None:
        if len(self._arriving) < self._config.max_uploads:
            return
        stalest = min(self._arriving, key=lambda upload: upload.last_byte_s)
        if time.monotonic() - stalest.last_byte_s < _MAY_BE_ENDED_AFTER_S:
            raise _at_capacity(f"{self._config.max_uploads} requests are being uploaded")
        self._arriving.discard(stalest)
        with suppress(RuntimeError):  # its own deadline may have passed just now
            stalest.deadline.reschedule(asyncio.get_running_loop().time())

    async def _spool(self, body: Body, upload: _Open, path: Path, reference: str) -> tuple[bytes, bool]:
        config, loop = self._config, asyncio.get_running_loop()
        latest = loop.time() + config.body_timeout_s
        spool = _Spool(path)
        scanner = BodyScanner(spool.write, reference=reference)
        try:
            async with upload.deadline:
                while not body.finished:
                    if upload in self._arriving:  # else it has been ended to make room
                        upload.deadline.reschedule(min(latest, loop.time() + config.body_idle_timeout_s))
                    piece = await body.next_piece()
                    upload.last_byte_s = time.monotonic()
                    self._count(upload, len(piece))
                    scanner.feed(piece)
                    if spool.num_bytes > config.max_video_bytes:
                        raise self._too_large()
                    await spool.flush(at_least=0 if body.finished else _WRITE_BYTES)
        except TimeoutError:
            raise RequestError(
                f"the body did not arrive in time: the server waits {config.body_idle_timeout_s:g} s for its next byte "
                f"and {config.body_timeout_s:g} s for all of it, and less when it is at capacity",
                code="body_timeout",
                status=408,
            ) from None
        except OSError:
            logger.exception("an uploaded clip cannot be written")
            raise RequestError(
                "the server cannot store the clip now; try again later", code="no_storage", status=503
            ) from None
        finally:
            spool.close()
        return scanner.text, scanner.found

    def _count(self, upload: _Open, num_bytes: int) -> None:
        upload.num_bytes += num_bytes
        if sum(each.num_bytes for each in self._open) > self._config.max_upload_bytes_in_flight:
            raise _at_capacity(f"{self._config.max_upload_bytes_in_flight} bytes of clips are waiting")

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the clip is larger than {self._config.max_video_bytes} bytes; send a smaller one, or a file in a folder "
            "that the server allows",
            code="media_too_large",
            status=413,
        )


def _at_capacity(what: str) -> RequestError:
    return RequestError(f"the server is full ({what}); try again in a moment", code="server_full", status=429)


class _Spool:
    """A file that is made with its first byte and written in a thread: a slow disk must not hold up the replica."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._waiting = bytearray()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Keep bytes for the next `flush`."""
        self._waiting += data
        self.num_bytes += len(data)

    async def flush(self, *, at_least: int) -> None:
        """Write what waits, if it is so much. Raises OSError."""
        if not self._waiting or len(self._waiting) < at_least:
            return
        data, self._waiting = self._waiting, bytearray()
        writing = asyncio.create_task(asyncio.to_thread(self._write, data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The file may be closed only when the thread has let go of it.
            await asyncio.wait([writing])
            raise

    def _write(self, data: bytearray) -> None:
        if self._file is None:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _default_parent() -> Path:
    return Path(tempfile.gettempdir()) / f"latentomni-uploads-{os.getuid()}"


def _own_folder(parent: Path) -> tuple[Path, IO[bytes]]:
    """A new folder of this replica, and the lock that says it lives; those of replicas that died are removed."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError("the folder for uploads belongs to another user; set upload_dir to a folder of your own")
    with (parent / "lock").open("wb") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for old in parent.glob("replica-*"):
            _remove_if_dead(old)
        folder = Path(tempfile.mkdtemp(prefix="replica-", dir=parent))
        lock = (folder / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError), (folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
