"""The scanner against json.loads, over random bodies and pieces."""

from __future__ import annotations

import base64
import json
import random
import re
from typing import Any

import pytest

from omni_serving.errors import RequestError
from omni_serving.scan import MAX_DEPTH, MAX_JSON_BYTES, BodyScanner

REFERENCE = "upload-0123456789abcdef"
ALPHABET = 'ab"\\/,:;[]{}é\u2028\U0001f600 \n\t0data:base64'


def scan(body: bytes, cuts: list[int]) -> tuple[BodyScanner, bytes]:
    data = bytearray()
    scanner = BodyScanner(data.extend, reference=REFERENCE)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        scanner.feed(body[start:end])
    return scanner, bytes(data)


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth < 5 else 5)
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind > 5:
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (random_text(rng), rng.choice([True, False, None]), rng.randrange(-9, 99), rng.random(), "")[kind]


def random_text(rng: random.Random) -> str:
    special = ["data:", "data:,", 'data:video/mp4;base64"', ";base64,", "x data:a;base64,QUJD", "a" * 300 + ",", "\\,"]
    plain = "".join(rng.choices(ALPHABET, k=rng.randrange(12)))
    return rng.choice([plain, plain, rng.choice(special) + plain])


def as_json(value: Any, rng: random.Random) -> bytes:
    """JSON as different writers write it: spaces or none, ASCII or not, escaped slashes, escaped signs."""
    text = json.dumps(
        value, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(",", ":"), (", ", " : "), (" ,\n", ":\t")])
    )
    if rng.random() < 0.5:
        text = text.replace("/", "\\/")
    if rng.random() < 0.3:
        text = re.sub(
            "[+;]", lambda found: f"\\u{ord(found.group()):04x}" if rng.random() < 0.2 else found.group(), text
        )
    return text.encode()


@pytest.mark.parametrize("seed", range(400))
def test_the_text_and_the_clip_are_those_that_json_reads(seed) -> None:
    rng = random.Random(seed)
    clip = rng.randbytes(rng.randrange(1, 200))
    head = rng.choice(["data:video/mp4;base64,", "DATA:Video/MP4;codecs=avc1;BASE64,", " data:;base64,"])
    uri = head + base64.b64encode(clip).decode()
    value: dict[str, Any] = {"a": random_value(rng, 1), "url": uri, "z": random_value(rng, 1)}
    expected = {**value, "url": REFERENCE}
    if rng.random() < 0.2:
        value = expected = {"a": random_value(rng, 1)}
    body = as_json(value, rng)
    assert json.loads(body) == value
    cuts = sorted(rng.choices(range(len(body) + 1), k=rng.choice([0, 1, 5, len(body)])))
    scanner, data = scan(body, cuts)
    assert json.loads(scanner.text) == expected
    assert (scanner.found, data) == (("url" in value), clip if "url" in value else b"")


def test_every_cut_of_a_body_gives_the_same() -> None:
    clip = bytes(range(256))
    text = base64.b64encode(clip).decode().replace("/", "\\/").replace("+", "\\u002B")
    body = (
        b'{"q": "a\\\\\\"b", "v": {"url": "\\u0064ata:video\\/mp4;base64,%s"}, "o": ["x", "\\u00e9"]}' % text.encode()
    )
    expected = {"q": 'a\\"b', "v": {"url": REFERENCE}, "o": ["x", "é"]}
    for cut in range(len(body) + 1):
        scanner, data = scan(body, [cut])
        assert (json.loads(scanner.text), data) == (expected, clip)


@pytest.mark.parametrize(
    ("base64_text", "code"),
    [
        ("?", "bad_base64"),
        ("????", "bad_base64"),
        ("QUJ", "bad_base64"),
        ("QQ==QUJD", "bad_base64"),
        ("QQ=QUJD=", "bad_base64"),
        ("QUJD\n", "bad_base64"),
        ("QUJ\\n", "bad_base64"),
        ("QUJ\\u12", "bad_base64"),
        ("QUJ\\u00e9", "bad_base64"),
        ("QUJDé", "bad_base64"),
        ("", "bad_data_uri"),
    ],
)
def test_base64_that_is_not_valid_is_refused(base64_text, code) -> None:
    body = f'{{"url": "data:video/mp4;base64,{base64_text}"}}'.encode()
    for cut in range(len(body) + 1):
        with pytest.raises(RequestError) as caught:
            scan(body, [cut])
        assert (caught.value.status, caught.value.code) == (400, code)


def test_two_clips_deep_nesting_and_long_text_are_refused() -> None:
    uri = b'"data:;base64,QUJD"'
    assert json.loads(scan(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, [])[0].text) is not None
    for body, code in (
        (b"[%s,%s]" % (uri, uri), "many_videos"),
        (b"[" * (MAX_DEPTH + 1), "invalid_json"),
        (b'["' + b"x" * MAX_JSON_BYTES, "request_too_large"),
        (b" " * (MAX_JSON_BYTES + 1), "request_too_large"),
    ):
        with pytest.raises(RequestError) as caught:
            scan(body, [])
        assert caught.value.code == code


def test_brackets_in_strings_do_not_nest() -> None:
    body = json.dumps(["[{" * 100, "]}"]).encode()
    assert scan(body, [])[0].text == body


def test_a_broken_body_stays_broken() -> None:
    for body in (b"", b"{", b'{"a": "data:;base64,QUJD', b'{"a" "data:;base64,QUJD"}', b'{"a": "\\', b"\xff\xfe"):
        with pytest.raises(ValueError):
            json.loads(scan(body, [])[0].text)
