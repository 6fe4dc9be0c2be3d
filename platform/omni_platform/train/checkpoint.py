"""Checkpoints that are whole or refused: written aside, hashed, marked complete last.

A run's folder below the storage path holds `checkpoint-<step>` folders. In each: what every worker saved,
`manifest.json` (size and SHA-256 of every file) and, written last, `COMPLETE` (the SHA-256 of the manifest).
The folders themselves are the only truth: Ray Train's own list of reported checkpoints can lag behind them,
so resuming looks at the storage that Ray Train hands out, not at that list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch.distributed as dist

_MARKER, _MANIFEST = "COMPLETE", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{8,})")
_CHUNK_BYTES = 1 << 22


class DamagedCheckpointError(ValueError):
    """A checkpoint whose content is not what its manifest says; the message names the folder and the file."""


class StoreError(RuntimeError):
    """The run's storage did not take what worker 0 wrote for all; raised on every worker."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The folder of one run, on any file system that pyarrow (and so Ray Train) knows."""

    files: pyarrow.fs.FileSystem
    folder: str

    @classmethod
    def at(cls, storage_path: str, run_name: str) -> Storage:
        """The folder of a run below a path or URI."""
        files, path = pyarrow.fs.FileSystem.from_uri(storage_path)
        return cls(files=files, folder=f"{path.rstrip('/')}/{run_name}")

    @classmethod
    def of_checkpoint(cls, uri: str) -> Storage:
        """The folder of the run that a checkpoint belongs to."""
        files, path = pyarrow.fs.FileSystem.from_uri(uri)
        return cls(files=files, folder=path.rstrip("/").rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, pyarrow.fs.LocalFileSystem)

    def path(self, *names: str) -> str:
        return "/".join((self.folder, *names))

    def steps(self, *, complete: bool = True) -> list[int]:
        """Steps of the checkpoints that are here, newest first; also the half-written ones if asked."""
        selector = pyarrow.fs.FileSelector(self.folder, allow_not_found=True)
        matches = (_NAME.fullmatch(info.base_name) for info in self.files.get_file_info(selector))
        steps = sorted((int(match[1]) for match in matches if match), reverse=True)
        return [step for step in steps if not complete or self.has(checkpoint_name(step), _MARKER)]

    def has(self, *names: str) -> bool:
        return self.files.get_file_info(self.path(*names)).type != pyarrow.fs.FileType.NotFound

    def read(self, name: str, file: str) -> bytes | None:
        """A file of a checkpoint; None where it is not there."""
        if not self.has(name, file):
            return None
        with self.files.open_input_stream(self.path(name, file)) as stream:
            return stream.read()

    def write(self, name: str, file: str, data: bytes) -> None:
        with self.files.open_output_stream(self.path(name, file)) as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Take a checkpoint away, its marker first: what an interrupted removal leaves is not complete."""
        if self.has(name, _MARKER):
            self.files.delete_file(self.path(name, _MARKER))
        if self.has(name):
            self.files.delete_dir(self.path(name))


def checkpoint_name(step: int) -> str:
    """The folder name of a step; names sort like steps."""
    return f"checkpoint-{step:08d}"


def step_of(uri: str) -> int | None:
    """The step of a checkpoint by its path; None for another path."""
    match = _NAME.fullmatch(uri.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def commit(storage: Storage, step: int, aside: Path) -> str:
    """Publish the folders that the workers wrote aside as one checkpoint; returns its path.

    Every worker calls it, each with its own folder. The checkpoint counts from the moment its marker is
    there: until then it is invisible to `newest_sound`.
    """
    make_room(storage, step)
    return mark_complete(storage, step, gather(copy_in(storage, step, aside)))


def make_room(storage: Storage, step: int) -> None:
    """An empty folder for a checkpoint. Every worker calls it, before any of them copies. Raises StoreError."""

    def empty() -> None:
        storage.remove(checkpoint_name(step))  # what an attempt that did not finish has left
        storage.files.create_dir(storage.path(checkpoint_name(step)), recursive=True)

    _first_for_all(empty)


def discard(storage: Storage, step: int) -> None:
    """Remove a checkpoint that could not be completed, so that it takes no space. Every worker calls it."""
    if dist.get_rank() == 0:
        with contextlib.suppress(Exception):  # a store that refuses this too; pruning or the next start removes it
            storage.remove(checkpoint_name(step))
    dist.barrier()


def copy_in(storage: Storage, step: int, aside: Path) -> dict[str, Any]:
    """Copy one worker's folder into a checkpoint; returns size and hash by file, for `mark_complete`."""
    pyarrow.fs.copy_files(
        str(aside), storage.path(checkpoint_name(step)), source_filesystem=pyarrow.fs.LocalFileSystem(),
        destination_filesystem=storage.files,
    )  # fmt: skip
    return {str(p.relative_to(aside)): _digest(p) for p in aside.rglob("*") if p.is_file()}


def mark_complete(storage: Storage, step: int, shares: list[dict[str, Any]]) -> str:
    """Write the manifest and then the marker, once every worker's share is there. Every worker calls it.

    Raises StoreError.
    """
    name = checkpoint_name(step)

    def mark() -> None:
        merged = {file: digest for share in shares for file, digest in sorted(share.items())}
        manifest = json.dumps({"step": step, "files": merged}, indent=1).encode()
        storage.write(name, _MANIFEST, manifest)
        storage.write(name, _MARKER, hashlib.sha256(manifest).hexdigest().encode())

    _first_for_all(mark)
    return storage.path(name)


def newest_sound(storage: Storage, scratch: Path, *, leads_node: bool) -> tuple[int, Path] | None:
    """Step and local folder of the newest checkpoint whose every file is as it was saved.

    Every worker calls it; the first worker of each node (`leads_node`) checks, and downloads into `scratch`
    where the storage is remote. A damaged checkpoint is reported by name and the one before it is tried.
    None where there is none at all; DamagedCheckpointError where there are some and none is sound.
    """
    steps, refused = gather(storage.steps())[0], []
    for step in steps:
        problem = _problem_of(storage, step, scratch) if leads_node else None
        problems = [text for text in gather(problem) if text]
        if not problems:
            return step, _local_folder(storage, step, scratch)
        refused += problems[:1]
        if dist.get_rank() == 0:
            print(f"checkpoint refused: {problems[0]}", flush=True)
    if refused:
        raise DamagedCheckpointError(
            f"no checkpoint can be resumed from: {'; '.join(refused)}. "
            "Restore one of them, or start under another run_name"
        )
    return None


def check(folder: Path, *, name: str) -> None:
    """Compare a local checkpoint folder with its manifest; DamagedCheckpointError at the first difference.

    `name` is what messages call the checkpoint.
    """
    try:
        manifest = (folder / _MANIFEST).read_bytes()
        marker = (folder / _MARKER).read_bytes().decode(errors="replace")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{name} has no {Path(str(error.filename)).name}") from None
    if hashlib.sha256(manifest).hexdigest() != marker:
        raise DamagedCheckpointError(f"{name}: {_MANIFEST} is not the one that was marked complete")
    for file, digest in json.loads(manifest)["files"].items():
        if not (folder / file).is_file():
            raise DamagedCheckpointError(f"{name}: {file} is missing")
        if _digest(folder / file) != digest:
            raise DamagedCheckpointError(f"{name}: {file} has changed since it was saved")


def prune(storage: Storage, keep: int, *, also: Collection[int] = ()) -> None:
    """Keep the newest complete checkpoints and those in `also` (the best, and those that wait to be evaluated).

    Older ones go, and half-written ones before the newest.
    """
    complete = storage.steps()
    kept = {*complete[:keep], *(set(also) & set(complete))}
    for step in storage.steps(complete=False):
        if complete and step < complete[0] and step not in kept:
            storage.remove(checkpoint_name(step))


def fetch(storage: Storage, step: int, scratch: Path) -> Path:
    """The local folder of a checkpoint whose every file is as it was saved; downloaded where the storage is remote.

    Raises DamagedCheckpointError.
    """
    name, folder = checkpoint_name(step), _local_folder(storage, step, scratch)
    if not storage.is_local:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pyarrow.fs.copy_files(
            storage.path(name), str(folder), source_filesystem=storage.files,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )  # fmt: skip
    check(folder, name=storage.path(name))
    return folder


def own_scratch(kind: str, *whose: object) -> Path:
    """A place below the temporary folder that is always the same for one owner: what a killed attempt has left there is
    found and cleared, not added to."""
    name = hashlib.sha256(":".join(map(str, whose)).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"{kind}-{name}"


def gather(value: Any) -> list[Any]:
    """The value of every worker, by rank. Every worker calls it."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _first_for_all(action: Callable[[], None]) -> None:
    """Run on worker 0 what the others wait for. A failure is raised on all of them: who waits at a barrier for a worker
    that has left waits for half an hour."""
    problem = None
    if dist.get_rank() == 0:
        try:
            action()
        except Exception as error:
            problem = f"worker 0: {error}"
    if text := gather(problem)[0]:
        raise StoreError(text)


def _local_folder(storage: Storage, step: int, scratch: Path) -> Path:
    return Path(storage.path(checkpoint_name(step))) if storage.is_local else scratch


def _problem_of(storage: Storage, step: int, scratch: Path) -> str | None:
    """What is wrong with the checkpoint, or None once it lies sound in its local folder."""
    try:
        fetch(storage, step, scratch)
    except DamagedCheckpointError as error:
        return str(error)
    return None


def _digest(path: Path) -> dict[str, Any]:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": sha.hexdigest()}
