"""The card beside every output: what it was made from, by which code, and how much of it there is.

A folder with a card is complete; one without is not. The card is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omni_platform import storage
from omni_platform.schema import SCHEMA_VERSION

CARD_NAME = "card.json"
_CONTENT = ("name", "inputs", "config", "config_fingerprint", "encoder_fingerprint", "counts", "schema_version")


class CardError(ValueError):
    """A card that is absent, unreadable, or tells of something else than expected."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about one output folder."""

    name: str
    """What kind of output it is, such as `film`, `anchors` or `checkpoint`."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Input URI -> fingerprint of its content."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""
    config_fingerprint: str = ""
    encoder_fingerprint: str = ""
    """The weights and settings that made the anchors; empty where no encoder had a part in it."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows by kind, such as `samples`, `segments`, `quarantined`, `quarantined.missing`."""
    schema_version: int = SCHEMA_VERSION
    code_version: str = field(default_factory=lambda: code_version())
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def write_card(folder: str | Path, card: Card) -> None:
    """Write the card into a folder whose content is complete."""
    storage.write_bytes(storage.join(folder, CARD_NAME), card_bytes(card))


def card_bytes(card: Card) -> bytes:
    """The card as the text of its file."""
    return (json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False) + "\n").encode()


def find_card(folder: str | Path) -> Card | None:
    """The card of a folder, or None where there is none (the folder is then absent or incomplete)."""
    try:
        data = storage.read_bytes(storage.join(folder, CARD_NAME))
    except FileNotFoundError:
        return None
    return _parse(data, folder)


def read_card(folder: str | Path) -> Card:
    """The card of a complete folder; raises `CardError` where there is none."""
    card = find_card(folder)
    if card is None:
        raise CardError(f"{folder} has no {CARD_NAME}: it is not there or was not finished; make it again")
    return card


def differences(card: Card, **expected: Any) -> list[str]:
    """One line per expected field (`inputs=..., config_fingerprint=...`) in which the card differs."""
    wrong = []
    for name, value in expected.items():
        found = getattr(card, name)
        if found != value:
            wrong.append(f"{name} is {found!r}, expected {value!r}")
    return wrong


def content_of(card: Card) -> dict[str, Any]:
    """What decides and describes the content of an output, without when and where it was made.

    `config` is there to name what differs; what counts of it is its fingerprint.
    """
    fields = dataclasses.asdict(card)
    return {name: fields[name] for name in _CONTENT}


def content_fingerprint(card: Card) -> str:
    """16 hex digits that change when the content of the output may have changed."""
    content = {name: value for name, value in content_of(card).items() if name != "config"}
    return fingerprint_bytes(json.dumps(content, sort_keys=True).encode())


def fingerprint_bytes(data: bytes) -> str:
    """16 hex digits of the content."""
    return hashlib.sha256(data).hexdigest()[:16]


def folder_fingerprint(
    folder: Path, *, besides: Collection[str] = ("training.json", "_files.json", "_staging.json")
) -> str:
    """16 hex digits of the names and contents of a folder's files, but for those named in `besides` at its top."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in besides:
            continue
        with path.open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def code_version() -> str:
    """Package version, and the git commit in a checkout (`.dirty` with local changes)."""
    try:
        version = importlib.metadata.version("latentomni")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    here = Path(__file__).parent
    sha = _git(here, "rev-parse", "--short=12", "HEAD")
    if not sha or not _git(here, "ls-files", "--error-unmatch", Path(__file__).name):
        return version  # installed, perhaps inside somebody else's repository
    return f"{version}+g{sha}" + (".dirty" if _git(here, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _parse(data: bytes, folder: str | Path) -> Card:
    try:
        fields = json.loads(data)
        return Card(**fields)
    except (ValueError, TypeError) as error:
        raise CardError(f"{storage.join(folder, CARD_NAME)} is not a card of this version: {error}") from None
