"""What a model on disk is made of, as a short text: the same for a copy elsewhere, another once a weight changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from omni_model.folder import TINY_BASE

_WEIGHTS = ".safetensors"
_READ_BESIDE = (".json", ".txt", ".model", ".jinja")
"""Configuration, tokenizer, method: small, and read whole."""
_ABOUT = ("card.json", "history.json", "_files.json")
"""Say how a folder came about and not what is in it."""
_WHOLE_BYTES = 1 << 26
_SAMPLE_BYTES = 1 << 14


def fingerprint_model(model_name_or_path: str | Path) -> str:
    """16 hex digits for a folder, a hub name or `tiny`.

    Files of up to 64 MiB are read whole. Of larger ones all names, types and shapes are, and the beginning, the middle
    and the end of every tensor: training changes a tensor in all of its parts, and 15 GB are not read again for that.
    A hub name that is in no cache on this machine has its name as its fingerprint.
    """
    folder = _folder_of(str(model_name_or_path))
    if folder is None:
        return f"hub:{model_name_or_path}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in _ABOUT or not path.name.endswith((_WEIGHTS, *_READ_BESIDE)):
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            for piece in _pieces(file, path):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _folder_of(name: str) -> Path | None:
    if name == "tiny":
        return TINY_BASE
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _pieces(file: BinaryIO, path: Path) -> Iterator[bytes]:
    size = os.fstat(file.fileno()).st_size
    if size <= _WHOLE_BYTES or path.suffix != _WEIGHTS:
        while piece := file.read(1 << 22):
            yield piece
        return
    # https://github.com/huggingface/safetensors#format: the header's length, the header, the tensors.
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length)
    yield header
    for name, tensor in sorted(json.loads(header).items()):
        if name == "__metadata__":
            continue
        start, stop = tensor["data_offsets"]
        for offset in sorted({start, (start + stop) // 2, max(start, stop - _SAMPLE_BYTES)}):
            file.seek(8 + length + offset)
            yield file.read(min(_SAMPLE_BYTES, stop - offset))
