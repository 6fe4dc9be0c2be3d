"""Results are written aside and put in place when they are whole; nothing that no run of ours made is removed.

A staged folder lies in the output's work folder (`.NAME.work/staged-KEY` beside it) and carries a note that names the
destination. A finished output carries `_files.json`, the list of the files that were put there. Only what such a note
or list names is ever removed: another output, a backup beside it, or a file that somebody added stays, and an output
with files that are not in its list is refused instead of replaced.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omni_platform import storage
from omni_platform.lease import Lease, RefusedError, hold, work_folder

FILE_LIST = "_files.json"
_NOTE, _PREFIX = "_staging.json", "staged-"
_NAMED = 5


class ForeignFilesError(RefusedError):
    """An output folder with files that no run made; the message names them and the fix."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A folder in which an output grows while this process holds its lease."""

    folder: str
    """Where to write."""
    destination: str
    lease: Lease

    def commit(self, *, marker: str, data: bytes) -> None:
        """Put the output in place, its marker file last. Raises `LeaseLostError` and `ForeignFilesError`."""
        self.lease.check()
        commit_folder(self.folder, self.destination, marker=marker, data=data)


@contextmanager
def staged_output(destination: str | Path, *, key: str, owner: str) -> Iterator[Staged]:
    """Hold an output and write it aside; without a `commit` the destination stays as it was.

    Raises `LeaseHeldError` where another run writes it and `ForeignFilesError` where it could not be replaced, both
    before any work is done.
    """
    with hold(destination, owner=owner) as lease:
        folder = stage_folder(lease.destination, key)
        yield Staged(folder=folder, destination=lease.destination, lease=lease)


def stage_folder(destination: str | Path, key: str, *, fresh: bool = False) -> str:
    """The folder in which results for `destination` are written. The caller holds the output's lease, or one above it.

    The same key (a fingerprint of everything that decides the content) finds what an interrupted attempt left, unless
    `fresh`; what attempts with other keys left for this destination is removed.
    """
    destination = storage.absolute(destination).rstrip("/")
    refuse_foreign_files(destination)
    work = work_folder(destination)
    for name in _staged_here(work, destination):
        if fresh or name != _PREFIX + key:
            storage.remove(storage.join(work, name))
    folder = storage.join(work, _PREFIX + key)
    note = {"destination": destination, "key": key}
    storage.write_bytes(storage.join(folder, _NOTE), json.dumps(note).encode())
    return folder


def commit_folder(staging: str, destination: str | Path, *, marker: str, data: bytes) -> None:
    """Make a staged folder the destination, its marker file last.

    On a file system the new folder takes the place of the old one. On an object store, where nothing can be renamed,
    the store copies the files; meanwhile the destination has no marker, and lists old and new files, so that the
    attempt after an interrupted one knows what may be replaced.
    """
    destination = storage.absolute(destination).rstrip("/")
    refuse_foreign_files(destination)
    new = [name for name in storage.list_tree(staging) if name != _NOTE]
    if storage.is_remote(destination):
        _copy_into(destination, staging, new, marker, data)
        return
    _write_list(staging, [*new, marker])
    storage.write_bytes(storage.join(staging, marker), data)
    storage.remove(storage.join(staging, _NOTE))
    target = storage.local_path(destination)
    replaced = Path(work_folder(destination)) / f"replaced-{uuid.uuid4().hex[:8]}"
    if target.exists():
        target.rename(replaced)
    Path(staging).rename(target)
    if replaced.exists():
        _remove_listed(replaced)


def publish_folder(source: Path, destination: str | Path, *, marker: str, data: bytes) -> None:
    """Put a copy of a folder of this machine in place of an output, as `commit_folder` does.

    The caller holds the output's lease, or one above it.
    """
    staging = stage_folder(destination, "publish", fresh=True)
    storage.copy_files(source, staging, storage.list_tree(source))
    commit_folder(staging, destination, marker=marker, data=data)


def _copy_into(destination: str, staging: str, new: list[str], marker: str, data: bytes) -> None:
    old = known_files(destination)
    storage.remove(storage.join(destination, marker))
    _write_list(destination, sorted({*old, *new, marker}))
    for name in sorted(set(old) - {*new, marker}):
        storage.remove(storage.join(destination, name))
    storage.copy_files(staging, destination, new)
    _write_list(destination, [*new, marker])
    storage.write_bytes(storage.join(destination, marker), data)
    storage.remove(staging)


def _remove_listed(folder: Path) -> None:
    """Remove the files that a replaced output lists, and the folders that are empty then."""
    for name in (*known_files(folder), FILE_LIST):
        (folder / name).unlink(missing_ok=True)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), key=lambda p: len(p.parts), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if any(folder.iterdir()):
        print(f"files that were added while this output was replaced are kept in {folder}", flush=True)
    else:
        folder.rmdir()


def known_files(destination: str | Path) -> list[str]:
    """The files of an output that runs put there, by relative path."""
    try:
        return json.loads(storage.read_bytes(storage.join(destination, FILE_LIST)))["files"]
    except FileNotFoundError:
        return []


def refuse_foreign_files(destination: str | Path) -> None:
    """Raise `ForeignFilesError` where a folder holds files that no run put there."""
    if not storage.is_remote(destination) and storage.local_path(destination).is_file():
        raise ForeignFilesError(f"{destination} is a file; an output is a folder: choose another place")
    work = work_folder(destination)
    inside = work.removeprefix(f"{str(destination).rstrip('/')}/") + "/"
    ours = {*known_files(destination), FILE_LIST}
    found = storage.list_tree(destination)
    foreign = [name for name in found if name not in ours and not name.startswith(inside)]
    if foreign:
        raise ForeignFilesError(
            f"{destination} holds {_counted(foreign)} that no run of this version put there "
            f"({', '.join(foreign[:_NAMED])}{', …' if len(foreign) > _NAMED else ''}): they would be lost. "
            "Move them away, or choose another output folder"
        )


def _counted(files: Sequence[str]) -> str:
    return f"{len(files)} file{'s' if len(files) > 1 else ''}"


def _staged_here(work: str, destination: str) -> list[str]:
    """Names of the staged folders in a work folder whose note names exactly this destination."""
    tops = {name.partition("/")[0] for name in storage.list_tree(work) if name.endswith(f"/{_NOTE}")}
    found = []
    for name in sorted(top for top in tops if top.startswith(_PREFIX)):
        try:
            note = json.loads(storage.read_bytes(storage.join(work, name, _NOTE)))
            ours = (note["destination"], _PREFIX + note["key"]) == (destination, name)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        if ours:
            found.append(name)
    return found


def _write_list(destination: str, files: list[str]) -> None:
    storage.write_bytes(storage.join(destination, FILE_LIST), json.dumps({"files": files}, indent=1).encode())
