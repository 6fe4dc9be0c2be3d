"""Files by URI: a plain path, `file://`, or `s3://` (through fsspec; `AWS_ENDPOINT_URL` is honoured).

Two promises: a single file appears whole or not at all, and a folder of results is complete exactly when its
marker file is there.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import fsspec

_REMOTE_SIGN = "://"
_LOCAL_SCHEME = "file://"


def is_remote(uri: str | Path) -> bool:
    """Whether a URI names an object store rather than this machine's file system."""
    text = str(uri)
    return _REMOTE_SIGN in text and not text.startswith(_LOCAL_SCHEME)


def local_path(uri: str | Path) -> Path:
    """The path of a local URI; ValueError for a remote one."""
    if is_remote(uri):
        raise ValueError(f"{uri} is not on this machine; copy it first (storage.local_copy)")
    return Path(str(uri).removeprefix(_LOCAL_SCHEME))


def join(folder: str | Path, *names: str) -> str:
    """A URI below a folder; an absolute name (or one with a scheme) stands for itself."""
    uri = str(folder)
    for name in names:
        uri = name if _REMOTE_SIGN in name or name.startswith("/") else posixpath.join(uri, name)
    return uri


def parent(uri: str | Path) -> str:
    """The folder that holds a URI."""
    return str(uri).rstrip("/").rpartition("/")[0] or ("/" if str(uri).startswith("/") else ".")


def absolute(uri: str | Path) -> str:
    """The same URI, meaning the same file from any working directory (Ray workers have their own)."""
    return str(uri) if is_remote(uri) else str(local_path(uri).absolute())


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(uri):
        return local_path(uri).exists()
    filesystem, path = _filesystem(uri)
    return filesystem.exists(path)


def list_files(folder: str | Path, suffix: str = "") -> list[str]:
    """URIs of the files directly in a folder, sorted; empty where there is no such folder."""
    if not is_remote(folder):
        path = local_path(folder)
        return sorted(str(p) for p in path.glob(f"*{suffix}") if p.is_file()) if path.is_dir() else []
    filesystem, path = _filesystem(folder)
    if not filesystem.exists(path):
        return []
    entries = filesystem.ls(path, detail=True)
    names = (posixpath.basename(e["name"]) for e in entries if e["type"] == "file")
    return sorted(join(folder, name) for name in names if name.endswith(suffix))


def signatures(folder: str | Path) -> dict[str, str]:
    """File name -> a text that changes when the file does: size and time, or the store's ETag."""
    if not is_remote(folder):
        path = local_path(folder)
        entries = os.scandir(path) if path.is_dir() else []
        return {e.name: f"{e.stat().st_size}-{e.stat().st_mtime_ns}" for e in entries if e.is_file()}
    filesystem, path = _filesystem(folder)
    if not filesystem.exists(path):
        return {}
    entries = (e for e in filesystem.ls(path, detail=True) if e["type"] == "file")
    return {posixpath.basename(e["name"]): f"{e['size']}-{e.get('ETag', '')}" for e in entries}


def open_read(uri: str | Path) -> IO[bytes]:
    """A seekable binary file; FileNotFoundError where there is none."""
    if not is_remote(uri):
        return local_path(uri).open("rb")
    filesystem, path = _filesystem(uri)
    return cast("IO[bytes]", filesystem.open(path, "rb"))


def read_bytes(uri: str | Path) -> bytes:
    """The whole file; FileNotFoundError where there is none."""
    with open_read(uri) as file:
        return file.read()


@contextmanager
def open_write(uri: str | Path) -> Iterator[IO[bytes]]:
    """Write a file that appears, or replaces the old one, only when the block ends without an error."""
    if is_remote(uri):
        filesystem, path = _filesystem(uri)
        file = cast("Any", filesystem.open(path, "wb"))
        try:
            yield file
        except BaseException:
            file.discard()
            file.closed = True  # or it would try to upload, and complain, when it is collected
            raise
        file.close()  # an object store shows an object when its upload is completed, never before
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a whole file at once; readers see the old one or the new one."""
    with open_write(uri) as file:
        file.write(data)


def remove(uri: str | Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    if is_remote(uri):
        filesystem, path = _filesystem(uri)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
        return
    path = local_path(uri)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_local(uri: str | Path, name: str) -> None:
    """Raise `ValueError` for a remote URI in a setting whose files other libraries open by their path."""
    if is_remote(uri):
        raise ValueError(
            f"{name}={uri}: this job writes files that are opened by their path; give a folder of this machine, or one "
            "that all machines share"
        )


@contextmanager
def local_copy(uri: str | Path) -> Iterator[Path]:
    """A path on this machine with the file's content: itself where it is local, else a copy that is removed.

    Raises FileNotFoundError where there is none.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if not path.exists():
            raise FileNotFoundError(f"{uri} does not exist")
        yield path
        return
    filesystem, path = _filesystem(uri)
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        copy = Path(folder) / posixpath.basename(path)
        filesystem.get_file(path, str(copy))
        yield copy


@contextmanager
def local_folder(uri: str | Path) -> Iterator[Path]:
    """A folder on this machine with a folder's content: itself where it is local, else a copy that is removed."""
    if not is_remote(uri):
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="folder-") as folder:
        copy_files(uri, folder, list_tree(uri))
        yield Path(folder)


def create_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file that must not be there yet; FileExistsError where it is.

    On S3 this is a conditional put, which decides between two writers where the server honours `If-None-Match`.
    """
    if is_remote(uri):
        filesystem, path = _filesystem(uri)
        try:
            filesystem.pipe_file(path, data, mode="create")
        except OSError as error:
            if _condition_failed(error):
                raise FileExistsError(f"{uri} is there already") from error
            raise
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def _condition_failed(error: OSError) -> bool:
    """Whether a store says that a file is there: s3fs has Amazon's words for it, and keeps those of others as cause."""
    words = " ".join(str(link) for link in (error, error.__cause__, error.__context__))
    return any(name in words for name in ("PreconditionFailed", "ConditionalRequestConflict"))


def list_tree(folder: str | Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; empty where there is no such folder."""
    if not is_remote(folder):
        top = local_path(folder)
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_symlink() or not p.is_dir())
    filesystem, path = _filesystem(folder)
    top = path.rstrip("/") + "/"
    return sorted(found.removeprefix(top) for found in filesystem.find(path) if found.startswith(top))


def copy_files(source: str | Path, target: str | Path, names: Sequence[str]) -> None:
    """Copy files by their relative paths from one folder into another; within a store the store does it itself."""
    if not names:
        return
    (source_fs, source_path), (target_fs, target_path) = _filesystem(source), _filesystem(target)
    sources = [posixpath.join(source_path, name) for name in names]
    targets = [posixpath.join(target_path, name) for name in names]
    if not is_remote(target):
        for path in {posixpath.dirname(path) for path in targets}:
            Path(path).mkdir(parents=True, exist_ok=True)
    if is_remote(source) and is_remote(target):
        source_fs.copy(sources, targets)
    elif is_remote(target):
        target_fs.put(sources, targets)
    else:
        source_fs.get(sources, targets)


def _filesystem(uri: str | Path) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path within it."""
    if not is_remote(uri):
        return fsspec.filesystem("file"), absolute(uri)
    scheme = str(uri).partition(_REMOTE_SIGN)[0]
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        # Other processes write what we list, so a remembered listing would be a wrong one.
        options["use_listings_cache"] = False
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint_url"] = endpoint
    return fsspec.core.url_to_fs(str(uri), **options)
