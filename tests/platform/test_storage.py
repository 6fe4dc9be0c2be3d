"""A file appears whole or not at all; a folder is complete exactly when its marker is there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from omni_platform import storage


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path):
    """A folder on this machine, and one on a store that knows no rename (fsspec's memory file system)."""
    if request.param == "s3":
        yield request.getfixturevalue("s3") + "/out"
        return
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    yield "memory://bucket/out"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def _names(uris: list[str]) -> list[str]:
    return [uri.rpartition("/")[2] for uri in uris]


def test_uris_are_joined_and_told_apart():
    assert storage.join("s3://b/x", "clips", "a.mp4") == "s3://b/x/clips/a.mp4"
    assert storage.join("s3://b/x", "/data/a.mp4") == "/data/a.mp4"
    assert storage.join("/here", "s3://b/a.mp4") == "s3://b/a.mp4"
    assert storage.parent("s3://b/x/m.jsonl") == "s3://b/x" and storage.parent("m.jsonl") == "."
    assert storage.is_remote("s3://b") and not storage.is_remote("file:///a") and not storage.is_remote("a/b")
    assert storage.local_path("file:///a/b") == Path("/a/b")
    assert storage.absolute("a") == str(Path.cwd() / "a") and storage.absolute("s3://b/a") == "s3://b/a"
    with pytest.raises(ValueError, match="not on this machine"):
        storage.local_path("s3://b/a")


def test_a_file_is_written_read_listed_and_removed(folder):
    uri = storage.join(folder, "a.txt")
    assert not storage.exists(uri) and storage.list_files(folder) == []
    storage.write_bytes(uri, b"one")
    storage.write_bytes(storage.join(folder, "b.bin"), b"22")
    storage.write_bytes(storage.join(folder, "deeper", "c.txt"), b"3")
    assert storage.read_bytes(uri) == b"one"
    assert storage.list_files(folder) == [uri, storage.join(folder, "b.bin")]
    assert _names(storage.list_files(folder, ".bin")) == ["b.bin"]
    with storage.open_read(uri) as file:
        file.seek(1)
        assert file.read() == b"ne"
    storage.remove(uri)
    storage.remove(uri)  # a second time is no mistake
    storage.remove(storage.join(folder, "deeper"))
    assert not storage.exists(uri) and _names(storage.list_files(folder)) == ["b.bin"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    uri = str(tmp_path / "a.txt")
    storage.write_bytes(uri, b"old")

    def fail() -> None:
        with storage.open_write(uri) as file:
            file.write(b"half of the n")
            raise RuntimeError("the writer dies")

    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_bytes(uri) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_signatures_change_with_the_content(folder):
    storage.write_bytes(storage.join(folder, "a"), b"1")
    before = storage.signatures(folder)
    storage.write_bytes(storage.join(folder, "a"), b"22")
    assert set(before) == {"a"} and storage.signatures(folder)["a"] != before["a"]
    assert storage.signatures(storage.join(folder, "nowhere")) == {}


def test_a_local_copy_is_the_file_itself_or_a_passing_copy(folder):
    uri = storage.join(folder, "clip.mp4")
    storage.write_bytes(uri, b"clip")
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == b"clip" and path.suffix == ".mp4"
    assert path.exists() != storage.is_remote(folder)
    with pytest.raises(FileNotFoundError), storage.local_copy(storage.join(folder, "none")):
        pass


def test_a_tree_is_listed_and_copied_by_relative_paths(folder, tmp_path):
    for name in ("a.txt", "deeper/b.txt", "deeper/more/c.txt"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    storage.write_bytes(f"{folder}2/other.txt", b"of a folder whose name begins alike")
    names = ["a.txt", "deeper/b.txt", "deeper/more/c.txt"]
    assert storage.list_tree(folder) == names
    assert storage.list_tree(storage.join(folder, "nowhere")) == []
    for target in (str(tmp_path / "copy"), storage.join(folder, "copy")):
        storage.copy_files(folder, target, names[1:])
        assert storage.list_tree(target) == names[1:]
        assert storage.read_bytes(storage.join(target, "deeper/b.txt")) == b"deeper/b.txt"
    storage.copy_files(tmp_path / "copy", storage.join(folder, "back"), names[2:])
    assert storage.list_tree(storage.join(folder, "back")) == names[2:]


def test_a_file_is_created_once(folder):
    storage.create_bytes(storage.join(folder, "a"), b"first")
    with pytest.raises(FileExistsError):
        storage.create_bytes(storage.join(folder, "a"), b"second")
    assert storage.read_bytes(storage.join(folder, "a")) == b"first"
