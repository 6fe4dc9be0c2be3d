"""Results are put in place when they are whole, and nothing that no run made is removed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from omni_platform import staging, storage
from omni_platform.lease import LeaseLostError, hold
from omni_platform.staging import ForeignFilesError, publish_folder, staged_output


@pytest.fixture(params=["local", "memory", "s3"])
def top(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on this machine, and one on a store that knows no rename (fsspec's memory file system)."""
    if request.param == "s3":
        yield request.getfixturevalue("s3") + "/top"
        return
    if request.param == "local":
        yield str(tmp_path)
        return
    bucket = f"bucket-{uuid.uuid4().hex}"
    yield f"memory://{bucket}"
    fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


def make(folder: str, key: str, *names: str, commit: bool = True) -> str:
    """Stage files that hold their own names; returns the staged folder."""
    with staged_output(folder, key=key, owner="test") as staged:
        for name in names:
            storage.write_bytes(storage.join(staged.folder, name), name.encode())
        if commit:
            staged.commit(marker="done.json", data=b"{}")
    return staged.folder


def files(folder: str) -> list[str]:
    return [name for name in storage.list_tree(folder) if name not in ("_files.json", "_staging.json")]


def test_results_are_staged_aside_and_committed_marker_last(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.join(top, "out")
    make(folder, "key1", "part", "deeper/part")
    assert files(folder) == ["deeper/part", "done.json", "part"]
    with staged_output(folder, key="key2", owner="test") as staged:
        storage.write_bytes(storage.join(staged.folder, "other"), b"2")
        assert files(folder) == ["deeper/part", "done.json", "part"]  # the old output serves until the new one is whole
        staged.commit(marker="done.json", data=b"[]")
    assert files(folder) == ["done.json", "other"]
    assert storage.read_bytes(storage.join(folder, "done.json")) == b"[]"
    assert storage.list_tree(top) == ["out/_files.json", "out/done.json", "out/other"]  # nothing is left beside it


def test_the_same_key_finds_what_an_interrupted_attempt_left_and_another_does_not(top: str) -> None:
    folder = storage.join(top, "out")
    make(folder, "key1", "part", commit=False)
    assert files(make(folder, "key1", commit=False)) == ["part"]
    assert files(make(folder, "key2", commit=False)) == []
    assert files(make(folder, "key1", commit=False)) == []
    assert files(folder) == []


def test_neighbours_whose_names_begin_alike_stay(top: str) -> None:
    """`.train.*` beside `train`: a backup, the work folder of `train.v2`, and a staged folder of something else."""
    theirs = [".train.my_backup/precious", ".train.old/precious", ".train.work/staged-mine/precious", "train.v2/x"]
    for name in theirs:
        storage.write_bytes(storage.join(top, name), b"not ours")
    live = make(storage.join(top, "train.v2x"), "a", "part", commit=False)
    make(storage.join(top, "train"), "key1", "part")
    make(storage.join(top, "train"), "key2", "part")
    assert [name for name in storage.list_tree(top) if name in theirs] == sorted(theirs)
    assert files(live) == ["part"]


def test_an_output_with_files_that_no_run_made_is_refused_not_replaced(top: str) -> None:
    folder = storage.join(top, "out")
    make(folder, "key1", "part")
    storage.write_bytes(storage.join(folder, "notes", "mine.txt"), b"a week of work")
    with pytest.raises(ForeignFilesError, match=r"out holds 1 file that .* \(notes/mine.txt\).*another output"):
        make(folder, "key2", "other")
    assert files(folder) == ["done.json", "notes/mine.txt", "part"]
    with pytest.raises(ForeignFilesError, match=r"holds 3 files .*\(done.json, part, x\)"):
        for name in ("done.json", "part", "x"):
            storage.write_bytes(storage.join(top, "theirs", name), b"")
        make(storage.join(top, "theirs"), "key1", "part")
    assert files(storage.join(top, "theirs")) == ["done.json", "part", "x"]


def test_a_file_that_appears_while_the_output_is_made_stays(top: str) -> None:
    folder = storage.join(top, "out")
    make(folder, "key1", "part")
    with pytest.raises(ForeignFilesError, match=r"late\.txt"), staged_output(folder, key="2", owner="test") as staged:
        storage.write_bytes(storage.join(folder, "late.txt"), b"")
        staged.commit(marker="done.json", data=b"{}")
    assert files(folder) == ["done.json", "late.txt", "part"]


def test_a_file_in_the_place_of_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ForeignFilesError, match="out is a file; an output is a folder"):
        make(str(tmp_path / "out"), "key", "part")


def test_an_attempt_after_a_commit_that_was_cut_off_goes_on(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.join(top, "out")
    make(folder, "key1", "part", "gone")
    step = "copy_files" if storage.is_remote(top) else "remove"

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged_output(folder, key="key2", owner="test") as staged:
        storage.write_bytes(storage.join(staged.folder, "part"), b"new")
        with monkeypatch.context() as power:
            power.setattr(staging.storage, step, cut_off)
            staged.commit(marker="done.json", data=b"{}")
    assert storage.exists(storage.join(folder, "done.json")) != storage.is_remote(top)
    with staged_output(folder, key="key2", owner="test") as staged:
        assert storage.read_bytes(storage.join(staged.folder, "part")) == b"new"
        staged.commit(marker="done.json", data=b"{}")
    assert files(folder) == ["done.json", "part"]


def test_a_run_whose_lease_was_taken_publishes_nothing(top: str) -> None:
    folder = storage.join(top, "out")
    with pytest.raises(LeaseLostError, match="out was taken over"), staged_output(folder, key="a", owner="a") as staged:
        storage.remove(storage.join(top, ".out.work", "lease.json"))
        with hold(folder, owner="b"):
            staged.commit(marker="done.json", data=b"{}")
    assert files(folder) == []


def test_a_folder_of_this_machine_is_published_whole(top: str, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", storage.join(top, "out")
    for name in ("a", "deeper/b"):
        storage.write_bytes(str(source / name), b"1")
    publish_folder(source, folder, marker="done.json", data=b"{}")
    assert files(folder) == ["a", "deeper/b", "done.json"]
    (source / "a").unlink()
    shutil.copytree(source / "deeper", source / "again")
    publish_folder(source, folder, marker="done.json", data=b"{}")
    assert files(folder) == ["again/b", "deeper/b", "done.json"]
