"""Who may ask: checks on the headers of a request, before its body and before any route.

A server on a laptop listens where every web page the laptop opens can reach it. Pages cannot read what they are not
allowed to, but they can send, and a page may point its own name at the laptop. So the Host header must be a name of
this server, a POST must say that it is JSON (which makes browsers ask first), and a page from elsewhere is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.refusals import refusal
from omni_serving.uploads import Body

OPEN_PATH = "/health"
"""Answered whatever the Host header and without a key: load balancers ask by address."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY_ADDRESS = ("0.0.0.0", "::")
_KEY = re.compile(r"[\x21-\x7e]{8,}")


def access_checks(config: ServeConfig, keys: tuple[str, ...]) -> list[Middleware]:
    """The checks of a server as middleware, outermost first."""
    checks = [Middleware(_HostCheck, names=_host_names(config))]
    if config.cors_allowed_origins:
        checks.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.cors_allowed_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    return [*checks, Middleware(_CallerCheck, origins=config.cors_allowed_origins, keys=keys)]


def read_keys(config: ServeConfig) -> tuple[str, ...]:
    """The bearer keys of the configuration; none where it names none. Raises ValueError where it names no usable ones.

    Messages name the variable or the file, never a key.
    """
    if config.api_keys_env:
        source, text = f"api_keys_env={config.api_keys_env}", os.environ.get(config.api_keys_env, "")
    elif config.api_keys_file:
        source = f"api_keys_file={config.api_keys_file}"
        try:
            text = Path(config.api_keys_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} cannot be read: {type(error).__name__}") from None
    else:
        return ()
    keys = tuple(text.replace(",", " ").split())
    if not keys:
        raise ValueError(f"{source} holds no keys; set it, or leave the option out for a server without keys")
    if not all(_KEY.fullmatch(key) for key in keys):
        raise ValueError(f"{source} holds a key that is shorter than 8 characters or not plain ASCII")
    return keys


def caller(scope: Scope) -> str:
    """Who asks, for taking turns: the key's short digest, else the address."""
    return scope.get("omni_caller") or f"addr:{(scope.get('client') or ('unknown',))[0]}"


class _HostCheck:
    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != OPEN_PATH and not self._fits(Headers(scope=scope)):
            error = RequestError(
                "the Host header is not a name of this server; call it by one, or let the operator add it to "
                "allowed_hosts",
                code="wrong_host",
                status=421,
            )
            await _refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fits(self, headers: Headers) -> bool:
        if "*" in self._names:
            return True
        sent = headers.getlist("host")
        if len(sent) != 1:
            return False
        host = _without_port(sent[0])
        return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in self._names)


class _CallerCheck:
    def __init__(self, app: ASGIApp, origins: tuple[str, ...], keys: tuple[str, ...]) -> None:
        self._app, self._origins = app, origins
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == OPEN_PATH:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                self._check_origin(headers)
            if self._keys:
                scope["omni_caller"] = self._check_key(headers)
            if scope["method"] == "POST":
                _check_content_type(headers)
        except RequestError as error:
            await _refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        else:
            own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
            foreign = not own and "*" not in self._origins and origin not in self._origins
        if foreign:
            raise RequestError(
                "web pages from elsewhere may not call this server; the operator can add their origin to "
                "cors_allowed_origins",
                code="wrong_origin",
                status=403,
            )

    def _check_key(self, headers: Mapping[str, str]) -> str:
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        key = sent.strip().encode("latin-1")
        # All are compared, so that the time says nothing about which one was near.
        known = [hmac.compare_digest(key, each) for each in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise RequestError(
                "the API key is missing or not known; send Authorization: Bearer KEY",
                code="invalid_api_key",
                status=401,
            )
        return f"key:{hashlib.sha256(key).hexdigest()[:8]}"


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    response = await refusal(error, Body(receive))
    await response(scope, receive, send)


def _check_content_type(headers: Mapping[str, str]) -> None:
    sent = headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json":
        raise RequestError(
            "send the body as JSON, with the header Content-Type: application/json",
            code="wrong_content_type",
            status=415,
        )


def _host_names(config: ServeConfig) -> tuple[str, ...]:
    own = () if config.host in _ANY_ADDRESS else (config.host,)
    return tuple(name.lower() for name in config.allowed_hosts or (*own, *_LOOPBACK))


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
