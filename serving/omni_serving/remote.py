"""Fetch a clip over http(s) from the hosts that the configuration names, and from no other."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError

_CHUNK_BYTES = 1 << 20


def fetch(url: str, config: ServeConfig) -> bytes:
    """The bytes behind an http(s) URL.

    Raises `RequestError`: 400 for a host that is not allowed, a redirect (it would lead past the list of
    hosts), a failure or a time-out; 413 above `max_video_bytes`.
    """
    _check_host(url, config.allowed_media_hosts)
    deadline_s = time.monotonic() + config.fetch_timeout_s
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(url, timeout=config.fetch_timeout_s) as response:
            return _read(response, config.max_video_bytes, deadline_s)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise _refused(f"the clip could not be fetched: {error}", "media_unreachable") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        raise _refused(f"the clip's address redirects ({code}); send the final address", "media_redirect")


def _check_host(url: str, allowed: tuple[str, ...]) -> None:
    if not allowed:
        raise _refused(
            "this server fetches nothing over http(s); send a file in an allowed folder or a data URI, "
            "or let the operator set allowed_media_hosts",
            "media_not_allowed",
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise _refused(f"the clip's address is not a URL: {error}", "bad_url") from None
    names = {host, f"{host}:{port or (443 if parts.scheme == 'https' else 80)}"}
    # Credentials in an address (user@host) are how one host is made to look like another.
    if parts.username is not None or not names & {name.lower() for name in allowed}:
        raise _refused(f"this server fetches no clips from {host!r}", "media_not_allowed")


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline_s: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > max_bytes:
            raise RequestError(
                f"the clip is larger than {max_bytes} bytes; compress it or cut out a part",
                code="media_too_large",
                status=413,
                param="messages",
            )
        if time.monotonic() > deadline_s:
            raise _refused("fetching the clip took too long; send it as a data URI", "media_unreachable")
    return bytes(data)


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, code=code, param="messages")
