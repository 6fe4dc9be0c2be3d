from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import pytest

from omni_platform.train.checkpoint import (
    DamagedCheckpointError,
    Storage,
    check,
    checkpoint_name,
    commit,
    newest_sound,
    prune,
)
from omni_platform.train.config import TrainConfig
from omni_platform.train.evaluation import best_step, to_keep
from omni_platform.train.upload import Uploader, UploadError

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(params=["local", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A run's folder; `remote` is a file system whose files cannot be opened by their path."""
    (tmp_path / "store").mkdir()
    if request.param == "local":
        return Storage.at(str(tmp_path / "store"), "run")
    files = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "store"), pyarrow.fs.LocalFileSystem())
    return Storage(files=files, folder="run")


def save(storage: Storage, tmp_path: Path, step: int) -> Path:
    """Commit a checkpoint of two files; returns where it lies."""
    aside = tmp_path / f"aside-{step}"
    (aside / "engine").mkdir(parents=True)
    (aside / "engine" / "weights.pt").write_bytes(bytes([step]) * 100)
    (aside / "state.json").write_text(str(step))
    assert commit(storage, step, aside) == storage.path(checkpoint_name(step))
    return tmp_path / "store" / "run" / checkpoint_name(step)


def newest(storage: Storage, tmp_path: Path) -> tuple[int, Path] | None:
    return newest_sound(storage, tmp_path / "scratch", leads_node=True)


def test_nothing_saved_is_nothing_to_resume(storage: Storage, tmp_path: Path) -> None:
    assert newest(storage, tmp_path) is None


def test_the_newest_checkpoint_is_found_with_its_content(storage: Storage, tmp_path: Path) -> None:
    save(storage, tmp_path, 3)
    folder = save(storage, tmp_path, 12)
    found = newest(storage, tmp_path)
    assert found is not None
    step, local = found
    assert step == 12
    assert (local / "engine" / "weights.pt").read_bytes() == bytes([12]) * 100
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["engine/weights.pt", "state.json"]


def test_a_half_written_checkpoint_is_not_seen(storage: Storage, tmp_path: Path) -> None:
    save(storage, tmp_path, 3)
    (save(storage, tmp_path, 6) / "COMPLETE").unlink()
    found = newest(storage, tmp_path)
    assert found is not None
    assert found[0] == 3


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    storage: Storage, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(storage, tmp_path, 3)
    folder = save(storage, tmp_path, 6)
    if damage == "changed":
        (folder / "engine" / "weights.pt").write_bytes(bytes([7]) * 100)
    elif damage == "missing":
        (folder / "state.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"files": {}}')
    found = newest(storage, tmp_path)
    assert found is not None
    assert found[0] == 3
    named = {"changed": "engine/weights.pt has changed", "missing": "state.json is missing",
             "manifest": "manifest.json is not the one"}[damage]  # fmt: skip
    said = capsys.readouterr().out
    assert named in said
    assert "run/checkpoint-00000006" in said


def test_only_damaged_checkpoints_do_not_begin_the_run_again(storage: Storage, tmp_path: Path) -> None:
    (save(storage, tmp_path, 6) / "state.json").write_text("x")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-00000006: state\.json has changed.*another run_name"):
        newest(storage, tmp_path)


def test_saving_a_step_again_leaves_no_old_file(storage: Storage, tmp_path: Path) -> None:
    folder = save(storage, tmp_path, 6)
    (folder / "left_over.pt").write_bytes(b"x")
    (tmp_path / "aside-6").rename(tmp_path / "old")
    save(storage, tmp_path, 6)
    assert not (folder / "left_over.pt").exists()
    check(folder, name="it")


def test_the_last_good_ones_are_kept(storage: Storage, tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(storage, tmp_path, step)
    (tmp_path / "store" / "run" / checkpoint_name(4) / "COMPLETE").unlink()
    unfinished = tmp_path / "store" / "run" / checkpoint_name(9)
    unfinished.mkdir()  # of a save that is going on
    prune(storage, 2)
    assert storage.steps() == [8, 6]
    assert storage.steps(complete=False) == [9, 8, 6]
    prune(storage, 1)
    assert storage.steps() == [8]


def test_the_best_one_is_kept_beside_the_newest(storage: Storage, tmp_path: Path) -> None:
    config = TrainConfig(
        run_name="r", dataset_dir="d", output_dir="o", eval_dataset_dir="e", save_steps=2, eval_steps=4, seed=1
    )
    for step in range(2, 18, 2):
        save(storage, tmp_path, step)
    for step, loss in ((4, 0.9), (8, 0.2), (12, 0.2), (16, 0.7)):
        storage.write(checkpoint_name(step), "evaluation.json", json.dumps({"loss": loss, "hits": loss}).encode())
    assert best_step(storage, config) == 12  # the later one of equals
    assert best_step(storage, replace(config, metric_for_best_model="hits", greater_is_better=True)) == 4
    with pytest.raises(ValueError, match="metric_for_best_model=los is none of hits, loss"):
        best_step(storage, replace(config, metric_for_best_model="los"))
    prune(storage, 1, also=to_keep(storage, config, total_steps=16))
    assert storage.steps() == [16, 12]


def test_a_checkpoint_that_waits_for_its_evaluation_stays(storage: Storage, tmp_path: Path) -> None:
    config = TrainConfig(
        run_name="r", dataset_dir="d", output_dir="o", eval_dataset_dir="e", save_steps=2, eval_steps=4
    )
    for step in (2, 4, 6, 7):
        save(storage, tmp_path, step)
    assert to_keep(storage, config, total_steps=7) == {4, 7}
    prune(storage, 1, also=to_keep(storage, config, total_steps=7))
    assert storage.steps() == [7, 4]
    assert to_keep(storage, replace(config, eval_dataset_dir=None, eval_steps=0), total_steps=7) == set()


def test_an_upload_counts_once_it_is_complete(storage: Storage, tmp_path: Path) -> None:
    save(storage, tmp_path, 3)
    uploader = Uploader(storage)
    assert (uploader.in_flight, uploader.own_share_done) == (False, False)
    (uploader.clear() / "state.json").write_text("6")
    uploader.start(6)
    assert uploader.in_flight
    assert storage.steps() == [3]  # whether or not the copy has arrived
    assert uploader.complete() == storage.path(checkpoint_name(6))
    assert (uploader.in_flight, uploader.aside.exists()) == (False, False)
    assert storage.steps() == [6, 3]
    check(tmp_path / "store" / "run" / checkpoint_name(6), name="it")


def test_an_upload_that_fails_leaves_what_was_there(storage: Storage, tmp_path: Path) -> None:
    save(storage, tmp_path, 3)
    uploader = Uploader(storage)
    (uploader.clear() / "state.json").write_text("6")
    uploader.aside.rename(tmp_path / "gone")
    uploader.start(6)
    with pytest.raises(UploadError, match=r"checkpoint 6 did not reach .*run: worker 0: .*checkpoint-"):
        uploader.complete()
    assert storage.steps() == [3]
    assert not uploader.in_flight


def test_what_a_killed_attempt_left_aside_does_not_get_into_a_checkpoint(storage: Storage) -> None:
    (Uploader(storage).clear() / "left_over.pt").write_bytes(b"x")
    assert list(Uploader(storage).clear().iterdir()) == []


def test_a_removal_that_is_interrupted_leaves_nothing_complete(storage: Storage, tmp_path: Path) -> None:
    folder = save(storage, tmp_path, 2)
    (folder / "COMPLETE").unlink()  # the first thing a removal does
    assert storage.steps() == []
    with pytest.raises(DamagedCheckpointError, match="has no COMPLETE"):
        check(folder, name="it")
    storage.remove(checkpoint_name(2))
    storage.remove(checkpoint_name(2))
    assert not folder.exists()
