"""A JSON body read piece by piece: the clip in it goes to disk, the rest stays small.

A request may hold a clip as `"data:video/mp4;base64,..."`. The scanner copies the JSON text and puts a short reference
where such a string stood; the bytes behind the comma are decoded as they arrive. It checks only what it needs (where
strings begin and end, how deep arrays and objects nest): whether the text is valid JSON is for the parser of the
result.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable

from omni_serving.errors import RequestError

MAX_JSON_BYTES = 512 * 1024
"""Size of a request beside its clip."""
MAX_DEPTH = 16
"""Nesting of arrays and objects; a valid request has 6."""
_MAX_HEAD_BYTES = 256
"""A string whose first comma comes later is not taken for a data URI."""
_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'["\\]')
_HEAD_END = re.compile(rb'["\\,]')
_DATA_URI = re.compile(r"\s*data:[^,]*;base64$", re.IGNORECASE)


class BodyScanner:
    """Feed it the body in pieces of any size; `text` is the JSON with references for data URIs.

    `write` receives the decoded bytes of the one data URI that a body may hold. Raises `RequestError`: 400 for base64
    that is not valid, for a second data URI and for deep nesting, 413 where the rest is too large. What `write` raises
    passes through.
    """

    def __init__(self, write: Callable[[bytes], None], *, reference: str) -> None:
        self._decoder = _Base64(write)
        self._reference = reference
        self.found = False
        """Whether a data URI has been replaced by the reference."""
        self._text = bytearray()
        self._state: Callable[[bytes, int], int] = self._outside
        self._head = bytearray()
        self._escape = bytearray()
        """An escape sequence under way, with its backslash."""
        self._depth = 0

    @property
    def text(self) -> bytes:
        """The JSON text so far."""
        return bytes(self._text)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        at = 0
        while at < len(piece):
            at = self._state(piece, at)
            if len(self._text) > MAX_JSON_BYTES:
                raise RequestError(
                    f"the request has more than {MAX_JSON_BYTES} bytes beside its clip; shorten the text",
                    code="request_too_large",
                    status=413,
                )

    # Each state takes piece[at:] as far as it reaches and returns where the next one continues.

    def _outside(self, piece: bytes, at: int) -> int:
        found = _STRUCTURE.search(piece, at)
        if found is None:
            self._text += piece[at:]
            return len(piece)
        self._text += piece[at : found.end()]
        sign = found.group()
        if sign == b'"':
            self._head.clear()
            self._state = self._in_head
        elif sign in b"[{":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise RequestError(f"the body nests more than {MAX_DEPTH} levels deep", code="invalid_json")
        else:
            self._depth -= 1
        return found.end()

    def _in_head(self, piece: bytes, at: int) -> int:
        if self._escape:
            return self._pass_escaped(self._head, piece, at)
        found = _HEAD_END.search(piece, at, at + _MAX_HEAD_BYTES)
        if found is None:
            end = min(len(piece), at + _MAX_HEAD_BYTES)
            self._head += piece[at:end]
            if len(self._head) >= _MAX_HEAD_BYTES:
                self._leave_head()
            return end
        self._head += piece[at : found.start()]
        sign = found.group()
        if sign == b"\\":
            self._escape += sign
        elif sign == b",":
            self._end_of_head()
        else:
            self._text += self._head + sign
            self._state = self._outside
        return found.end()

    def _end_of_head(self) -> None:
        if not _is_data_uri(self._head):
            self._head += b","
            self._leave_head()
            return
        if self.found:
            raise RequestError("the body holds more than one data URI; send one video per request", code="many_videos")
        self.found = True
        self._text += self._reference.encode()
        self._state = self._in_data

    def _leave_head(self) -> None:
        self._text += self._head
        self._state = self._in_string

    def _in_string(self, piece: bytes, at: int) -> int:
        if self._escape:
            return self._pass_escaped(self._text, piece, at)
        found = _STRING_END.search(piece, at)
        end = len(piece) if found is None else found.end()
        if found is not None and found.group() == b"\\":
            self._text += piece[at : found.start()]
            self._escape += b"\\"
        else:
            self._text += piece[at:end]
            if found is not None:
                self._state = self._outside
        return end

    def _pass_escaped(self, target: bytearray, piece: bytes, at: int) -> int:
        """The character behind a backslash belongs to the string, whatever it is."""
        target += self._escape + piece[at : at + 1]
        self._escape.clear()
        return at + 1

    def _in_data(self, piece: bytes, at: int) -> int:
        if self._escape:
            return self._escaped_data(piece, at)
        found = _STRING_END.search(piece, at)
        end = len(piece) if found is None else found.start()
        if end > at:
            self._decoder.feed(piece[at:end])
        if found is None:
            return end
        if found.group() == b"\\":
            self._escape += b"\\"
        else:
            self._decoder.finish()
            self._text += b'"'
            self._state = self._outside
        return found.end()

    def _escaped_data(self, piece: bytes, at: int) -> int:
        """Some clients write the slash of base64 as `\\/`, and any character may be written as `\\uXXXX`."""
        self._escape += piece[at : at + 1]
        if not self._escape.startswith(b"\\u") or len(self._escape) == len(b"\\u002b"):
            try:
                text = json.loads(b'"%s"' % bytes(self._escape))
            except ValueError:
                raise _bad_base64("a broken escape sequence") from None
            self._escape.clear()
            self._decoder.feed(text.encode(errors="replace"))
        return at + 1


def _is_data_uri(head: bytearray) -> bool:
    try:
        return _DATA_URI.match(json.loads(b'"%s"' % bytes(head))) is not None
    except ValueError:
        return False


class _Base64:
    """Base64 in pieces; memory is that of one piece."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._rest = b""
        self._empty, self._padded = True, False

    def feed(self, text: bytes) -> None:
        text = self._rest + text
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        if not whole:
            return
        if self._padded:
            raise _bad_base64("it continues after its padding")
        self._padded = text[whole - 1 : whole] == b"="
        try:
            data = binascii.a2b_base64(memoryview(text)[:whole], strict_mode=True)
        except binascii.Error as error:
            raise _bad_base64(str(error).lower()) from None
        self._empty = False
        self._write(data)

    def finish(self) -> None:
        """The string has ended; `RequestError` where it ends too early."""
        if self._rest:
            raise _bad_base64("its length is not a multiple of four")
        if self._empty:
            raise RequestError(
                "the data URI holds no bytes; encode the file again", code="bad_data_uri", param="messages"
            )


def _bad_base64(reason: str) -> RequestError:
    return RequestError(f"the data URI is not valid base64: {reason}", code="bad_base64", param="messages")
