"""A sweep on a real Ray: what is done is skipped, what broke is told and tried again, what was killed goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ray
from mlflow.tracking import MlflowClient

from omni_platform.sweep import Cell, Note, Outcome, Place, make_files, read_results, result_uri, run_sweep
from omni_platform.tracking import TrackedRun, metric_history
from omni_platform.tracking.spool import read_history

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "train"))

from faults import TIME_LIMIT_S, end, kill, launch, members  # noqa: E402

# Workers cannot import a test: they get its functions by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

WAITS, DIES = "waits", "dies"


def work(cell: Cell, note: Note) -> Outcome:
    """Twice the cell's number; leaves a mark for every call, and misbehaves as the cell is told to."""
    folder = Path(cell.config["marks"])
    calls = len(list(folder.glob(f"{cell.variant}-{cell.seed}-*")))
    (folder / f"{cell.variant}-{cell.seed}-{calls}").touch()
    note(1, {"val/own": 0.5, "train/loss": 3.0})
    if cell.variant == WAITS:
        while not (folder / "go").exists():
            time.sleep(0.05)
    if cell.variant == DIES and calls == 0:
        os._exit(1)
    if (folder / f"broken-{cell.variant}").exists():
        raise RuntimeError(f"{cell.variant} is broken")
    twice = 2.0 * cell.config["number"]
    note(2, {"val/own": 0.75, "train/loss": 1.0})
    return Outcome(result={"twice": twice, "latent": True, "report": {"n": calls}}, files={"notes.txt": b"seen"})


def _cells(marks: Path, *variants: str, number: int = 3, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    config = {"number": number, "marks": str(marks)}
    return [Cell(variant=v, seed=seed, config=config) for seed in seeds for v in variants]


def _calls(folder: Path, variant: str = "*") -> int:
    return len(list(folder.glob(f"{variant}-?-?")))


def _place(folder: Path) -> Place:
    return Place(output_dir=str(folder), experiment_name="trials", tracking_uri=f"sqlite:///{folder}/mlflow.db")


def _runs(place: Place, status: str) -> list:
    client = MlflowClient(tracking_uri=place.tracking_uri)
    experiment = client.get_experiment_by_name(place.experiment_name)
    assert experiment is not None
    return [run for run in client.search_runs([experiment.experiment_id]) if run.info.status == status]


def _results(place: Place) -> list[dict]:
    assert place.tracking_uri
    return read_results(place.experiment_name, tracking_uri=place.tracking_uri)


@pytest.mark.usefixtures("local_ray")
def test_what_is_done_is_skipped_and_what_broke_is_told_and_tried_again(tmp_path):
    """And a process that dies takes nothing with it but its own cell, which is run once more."""
    place, cells = _place(tmp_path), _cells(tmp_path, "sft", "cure", DIES)
    (tmp_path / "broken-cure").touch()
    first = run_sweep(cells, work, place)
    assert (first.done, first.skipped, list(first.failed)) == (2, 0, [cells[1].key])
    assert "cure is broken" in first.failed[cells[1].key]
    (broken,) = _runs(place, "FAILED")
    assert broken.data.tags["variant"] == "cure"
    text = MlflowClient(tracking_uri=place.tracking_uri).download_artifacts(broken.info.run_id, "error.txt")
    assert "RuntimeError: cure is broken" in Path(text).read_text()
    assert [_calls(tmp_path, v) for v in ("sft", "cure", DIES)] == [1, 1, 2]
    assert {found["variant"] for found in _results(place)} == {"sft", DIES}

    (tmp_path / "broken-cure").unlink()
    again = run_sweep(cells, work, place)
    assert (again.done, again.skipped, again.failed) == (1, 2, {})
    assert [_calls(tmp_path, v) for v in ("sft", "cure", DIES)] == [1, 2, 2]
    assert {run.info.run_id for run in _runs(place, "FINISHED")} >= {broken.info.run_id}  # the same run, now well
    assert not _runs(place, "FAILED") and not _runs(place, "RUNNING")
    assert json.loads(Path(result_uri(place, cells[1])).read_text())["twice"] == 6.0


@pytest.mark.usefixtures("local_ray")
def test_results_and_histories_are_read_back_from_the_tracker(tmp_path):
    place = _place(tmp_path)
    run_sweep(_cells(tmp_path, "sft", seeds=(0, 1)), work, place)
    found = {result["seed"]: result for result in _results(place)}
    assert found.keys() == {0, 1}
    assert (found[1]["variant"], found[1]["twice"], found[1]["report"]) == ("sft", 6.0, {"n": 0})
    assert found[0]["run_id"] != found[1]["run_id"] and found[0]["cell"] != found[1]["cell"]
    run = TrackedRun(tracking_uri=str(place.tracking_uri), experiment_id="", run_id=found[1]["run_id"])
    assert metric_history(run, "val/own") == {1: 0.5, 2: 0.75}
    assert metric_history(run, "train/loss") == {1: 3.0, 2: 1.0}
    data = run.client.get_run(run.run_id).data
    assert data.metrics["twice"] == 6.0 and "latent" not in data.metrics and data.params["number"] == "3"
    assert Path(run.client.download_artifacts(run.run_id, "notes.txt")).read_text() == "seen"

    # The cell once more, in another run, as after its folder was lost: the latest counts.
    shutil.rmtree(Path(result_uri(place, _cells(tmp_path, "sft")[0])).parent)
    run_sweep(_cells(tmp_path, "sft"), work, place)
    later = {result["seed"]: result for result in _results(place)}
    assert later[1] == found[1] and len(_results(place)) == 2
    assert later[0]["run_id"] != found[0]["run_id"] and later[0]["report"] == {"n": 1}


def test_an_experiment_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no experiment trials; run the sweep first"):
        _results(_place(tmp_path))


@pytest.mark.usefixtures("local_ray")
def test_another_config_is_another_cell(tmp_path):
    place = _place(tmp_path)
    run_sweep(_cells(tmp_path, "sft"), work, place)
    other = run_sweep(_cells(tmp_path, "sft", number=4), work, place)
    assert (other.done, other.skipped) == (1, 0)
    assert sorted(found["twice"] for found in _results(place)) == [6.0, 8.0]
    (a,), (b,), (c,) = (_cells(tmp_path, "sft", number=3, seeds=(seed,)) for seed in (0, 0, 1))
    assert a.key == b.key != c.key


def test_a_cell_may_be_in_a_sweep_once(tmp_path):
    cells = _cells(tmp_path, "sft", "cure", "sft")
    with pytest.raises(ValueError, match=rf"cells \['{cells[0].key}'\] are in the sweep twice; give each its own"):
        run_sweep(cells, work, _place(tmp_path))
    assert _calls(tmp_path) == 0


def _write(path: str, text: str) -> None:
    if text == "broken":
        raise RuntimeError("no such clip")
    Path(path).write_text(text)


@pytest.mark.usefixtures("local_ray")
def test_only_missing_files_are_made(tmp_path):
    there, missing = tmp_path / "there.txt", tmp_path / "missing.txt"
    there.write_text("old")
    make_files({str(there): (_write, ("new",)), str(missing): (_write, ("made",))}, desc="files")
    assert (there.read_text(), missing.read_text()) == ("old", "made")
    with pytest.raises(ray.exceptions.RayTaskError, match="no such clip"):
        make_files({str(tmp_path / "never.txt"): (_write, ("broken",))}, desc="files")


def _share(path: str) -> None:
    Path(path).write_text(str(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)))


def _work_with_a_share(cell: Cell, note: Note) -> Outcome:
    return Outcome(result={"share": float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))})


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_cells_and_files_ask_for_their_share_of_a_gpu(tmp_path, share):
    make_files({str(tmp_path / "file"): (_share, ())}, desc="files", gpus_per_file=share)
    assert (tmp_path / "file").read_text() == str(share)
    cells, place = _cells(tmp_path, "sft"), _place(tmp_path)
    run_sweep(cells, _work_with_a_share, place, gpus_per_cell=share)
    assert json.loads(Path(result_uri(place, cells[0])).read_text()) == {"share": share}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_cells_that_are_missing(tmp_path):
    """Every process of the job at once, while one cell is done and another is at work: what that one has logged is on
    the terminal and in its spool, and in the tracker when the cell was run again."""
    command = [sys.executable, __file__, str(tmp_path)]
    cells, place = _cells(tmp_path, "sft", WAITS, "cure"), _place(tmp_path)
    log = tmp_path / "log.txt"
    job = launch(command, log)
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while f"{cells[1].key}: step 1 · val/own 0.5 · train/loss 3" not in log.read_text():
        assert job.poll() is None and time.monotonic() < deadline_s, log.read_text()[-4000:]
        time.sleep(0.05)
    kill(members(job.pid))
    assert end([job]) == [-9]
    assert [_calls(tmp_path, cell.variant) for cell in cells] == [1, 1, 0]
    assert f"{cells[0].key}: done · twice 6" in log.read_text()
    (killed,) = _runs(place, "RUNNING")
    run = TrackedRun(tracking_uri=str(place.tracking_uri), experiment_id="", run_id=killed.info.run_id)
    spool = Path(result_uri(place, cells[1])).parent / "tracking"
    assert read_history(spool)["val/own"] == {1: 0.5}

    (tmp_path / "go").touch()
    assert end([launch(command, log)]) == [0], log.read_text()[-4000:]
    assert [_calls(tmp_path, cell.variant) for cell in cells] == [1, 2, 1]
    assert {found["variant"] for found in _results(place)} == {"sft", WAITS, "cure"}
    assert len(_runs(place, "FINISHED")) == 3 and not _runs(place, "RUNNING")
    assert metric_history(run, "val/own") == {1: 0.5, 2: 0.75}


def _main(folder: Path) -> None:
    from omni_platform.runtime import start_ray

    start_ray(num_cpus=1, object_store_memory_bytes=100_000_000)
    sweep = run_sweep(_cells(folder, "sft", WAITS, "cure"), partial(work), _place(folder))
    sys.exit(1 if sweep.failed else 0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
