"""Fetch a clip over http(s) from the hosts that the configuration names, and from no other.

A name is looked up once, and the connection goes to the address that was checked: a name that points elsewhere a
moment later leads nowhere. Environment variables for proxies are not read, because a proxy would look the name up
again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import BinaryIO, cast
from urllib.parse import SplitResult, urlsplit

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError

_CHUNK_BYTES = 1 << 18
_SILENCE_S = 5.0
"""A host that sends nothing for so long is given up; also the time before the rate is looked at."""
_WATCH_S = 0.1


def fetch(url: str, config: ServeConfig, *, should_stop: Callable[[], bool] = lambda: False) -> BinaryIO:
    """What is behind an http(s) URL, as an open file without a name; closing it frees its space.

    `should_stop` is asked ten times a second and ends the fetch.

    Raises `RequestError`: 400 for a host that is not allowed, a redirect (it would lead past the list of
    hosts), a failure, or a host that takes longer than `fetch_timeout_s` or sends less than
    `fetch_min_bytes_per_s`; 413 above `max_video_bytes`.
    """
    parts = _checked_url(url, config.allowed_media_hosts)
    until_s = time.monotonic() + config.fetch_timeout_s
    file = cast("BinaryIO", tempfile.TemporaryFile(prefix="clip-"))  # noqa: SIM115 - handed to the caller
    try:
        end = _connect(_addresses(parts, config.allowed_media_hosts), _port(parts), until_s)
        with _ended_in_time(end, until_s, should_stop) as why_ended:
            try:
                _download(_speak(parts, end), parts, file, config)
            except (OSError, http.client.HTTPException) as error:
                if why_ended or isinstance(error, TimeoutError):
                    message = "fetching the clip took too long; send it as a data URI"
                    raise _refused(message, "media_unreachable") from None
                raise
        if why_ended:
            raise _refused("fetching the clip took too long; send it as a data URI", "media_unreachable")
        file.seek(0)
        return file
    except (OSError, http.client.HTTPException, ValueError) as error:
        file.close()
        if isinstance(error, RequestError):
            raise
        raise _refused(f"the clip could not be fetched: {error}", "media_unreachable") from None


def check_url(url: str, config: ServeConfig) -> None:
    """`RequestError` where the URL names no allowed host; nothing is looked up."""
    _checked_url(url, config.allowed_media_hosts)


def _checked_url(url: str, allowed: tuple[str, ...]) -> SplitResult:
    if not allowed:
        raise _refused(
            "this server fetches nothing over http(s); send a file in an allowed folder or a data URI, "
            "or let the operator set allowed_media_hosts",
            "media_not_allowed",
        )
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        names = {host, f"{host}:{_port(parts)}", f"[{host}]:{_port(parts)}"}
    except ValueError as error:
        raise _refused(f"the clip's address is not a URL: {error}", "bad_url") from None
    # Credentials in an address (user@host) are how one host is made to look like another.
    if not host or parts.username is not None or not names & {name.lower() for name in allowed}:
        raise _refused(f"this server fetches no clips from {host[:200]!r}", "media_not_allowed")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme.lower() == "https" else 80)


def _addresses(parts: SplitResult, allowed: tuple[str, ...]) -> list[str]:
    """The addresses that the URL's host has now, if they may be reached."""
    host = (parts.hostname or "").lower()
    found = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not _is_address(host) and host != "localhost":
        for address in addresses:
            # A name on the list stands for a public host. Who controls its record may point it inwards.
            if not _may_reach(address, allowed):
                raise _refused(
                    f"{host!r} leads to an address inside a private network; the operator can add that address or "
                    "its network (10.0.0.0/8) to allowed_media_hosts",
                    "media_not_allowed",
                )
    return addresses


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _may_reach(address: str, allowed: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_global and not ip.is_multicast:
        return True
    for entry in allowed:
        try:
            if ip in ipaddress.ip_network(entry):
                return True
        except ValueError:  # a name
            continue
    return False


def _connect(addresses: list[str], port: int, until_s: float) -> socket.socket:
    for i, address in enumerate(addresses):
        timeout_s = max(0.01, min(_SILENCE_S, until_s - time.monotonic()))
        try:
            return socket.create_connection((address, port), timeout=timeout_s)
        except OSError:
            if i == len(addresses) - 1:
                raise
    raise OSError("its name has no address")


def _speak(parts: SplitResult, end: socket.socket) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(parts.hostname or "", _port(parts))
    if parts.scheme.lower() == "https":
        end = ssl.create_default_context().wrap_socket(end, server_hostname=parts.hostname)
    connection.sock = end  # connected: http.client looks nothing up
    return connection


@contextmanager
def _ended_in_time(end: socket.socket, until_s: float, should_stop: Callable[[], bool]) -> Iterator[list[str]]:
    """Shut a connection down when it is late or no longer wanted; the list is not empty then.

    Time-outs of a socket count from byte to byte: one byte every few seconds would pass them all.
    """
    ended: list[str] = []
    finished = threading.Event()
    # Encryption takes the first socket over; a second one for the same connection stays ours.
    handle = end.dup()

    def watch() -> None:
        while not finished.wait(_WATCH_S):
            if time.monotonic() > until_s or should_stop():
                ended.append("shut down")
                with suppress(OSError):  # it is closed already
                    handle.shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, name="fetch-watch", daemon=True)
    watcher.start()
    try:
        yield ended
    finally:
        finished.set()
        watcher.join()
        handle.close()
        end.close()


def _download(connection: http.client.HTTPConnection, parts: SplitResult, file: BinaryIO, config: ServeConfig) -> None:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with closing(connection):
        connection.request("GET", target, headers={"Accept-Encoding": "identity", "Connection": "close"})
        with connection.getresponse() as response:
            _check_response(response, config.max_video_bytes)
            _copy(response, file, config)


def _check_response(response: http.client.HTTPResponse, max_bytes: int) -> None:
    if 300 <= response.status < 400:
        raise _refused(f"the clip's address redirects ({response.status}); send the final address", "media_redirect")
    if response.status != 200:
        raise _refused(f"the clip could not be fetched: its host answers {response.status}", "media_unreachable")
    if (response.length or 0) > max_bytes:
        raise _too_large(max_bytes)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, config: ServeConfig) -> None:
    started_s, total = time.monotonic(), 0
    while chunk := response.read1(_CHUNK_BYTES):
        total += len(chunk)
        if total > config.max_video_bytes:
            raise _too_large(config.max_video_bytes)
        file.write(chunk)
        elapsed_s = time.monotonic() - started_s
        if elapsed_s > _SILENCE_S and total < config.fetch_min_bytes_per_s * elapsed_s:
            raise _refused("the clip's host sends too slowly; send it as a data URI", "media_unreachable")
    if response.length:  # what is missing of the announced length
        raise ConnectionError("its host broke off in the middle")


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"the clip is larger than {max_bytes} bytes; compress it or cut out a part",
        code="media_too_large",
        status=413,
        param="messages",
    )


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, code=code, param="messages")
