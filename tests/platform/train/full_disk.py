"""A run's storage whose disk is full from some checkpoint on: half of a file arrives, then there is no space left."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem

from omni_platform.train.checkpoint import Storage


class FullDisk(LocalFileSystem):
    """Writes into checkpoints of `full` steps fail in the middle of a file."""

    cachable = False

    def __init__(self, full: list[int], **options: Any) -> None:
        super().__init__(**options)
        self._full = full

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super().open(path, mode, **options)
        step = re.search(r"checkpoint-(\d+)", path)
        if "w" in mode and step and int(step[1]) in self._full:
            return _HalfAFile(file)
        return file


class _HalfAFile:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def full_disk(folder: Path, run_name: str, steps: list[int]) -> Storage:
    """The storage of a run below a folder, full from the given checkpoints on."""
    files = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(FullDisk(steps)))
    return Storage(files=files, folder=f"{folder}/{run_name}")
