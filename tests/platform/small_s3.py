"""As much of S3 as one bucket needs, in memory on loopback: for tests of what is sent, where no real server is at hand.

`conditions=False` makes it a server that does not know `If-None-Match`, as some stores do not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


@contextmanager
def small_s3(*, conditions: bool = True) -> Iterator[str]:
    """The URL of a server that has every bucket that is named."""
    objects: dict[str, bytes] = {}
    lock = threading.Lock()

    class Handler(_Handler):
        store, guard, honours_conditions = objects, lock, conditions

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: dict[str, bytes]
    guard: threading.Lock
    honours_conditions: bool

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        key, data = self._key, self._body()
        source = self.headers.get("x-amz-copy-source")
        with self.guard:
            if self.honours_conditions and self.headers.get("If-None-Match") == "*" and key in self.store:
                return self._error(412, "PreconditionFailed")
            self.store[key] = self.store[unquote(source).lstrip("/")] if source else data
        body = f"<CopyObjectResult><ETag>{_etag(self.store[key])}</ETag></CopyObjectResult>" if source else ""
        return self._answer(200, body.encode(), ETag=_etag(self.store[key]))

    def do_GET(self) -> None:
        if "list-type" in self._query:
            return self._answer(200, self._listing())
        data = self.store.get(self._key)
        if data is None:
            return self._error(404, "NoSuchKey")
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            about = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self._answer(206, part, ETag=_etag(data), **{"Content-Range": about})
        return self._answer(200, data, ETag=_etag(data))

    def do_HEAD(self) -> None:
        data = self.store.get(self._key)
        if data is None:
            return self._answer(404, b"")
        return self._answer(200, data, ETag=_etag(data))

    def do_DELETE(self) -> None:
        self.store.pop(self._key, None)
        self._answer(204, b"")

    def do_POST(self) -> None:
        bucket = self._key.partition("/")[0]
        for element in ElementTree.fromstring(self._body()).iter():
            if element.tag.endswith("Key"):
                self.store.pop(f"{bucket}/{element.text}", None)
        self._answer(200, b"<DeleteResult/>")

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _listing(self) -> bytes:
        bucket, query = self._key.rstrip("/"), self._query
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        files, folders = [], set()
        for key, data in sorted(self.store.items()):
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                files.append((name, data))
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, data in files
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(folders))
        about = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(files)}</KeyCount>"
        return f"<ListBucketResult>{about}{contents}{common}</ListBucketResult>".encode()

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
