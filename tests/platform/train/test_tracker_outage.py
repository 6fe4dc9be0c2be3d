"""Training whose tracker is killed at step 2, under Ray Train, with a real MLflow server."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
from toy_runs import config
from toy_task import ToyRows, ToyTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from mlflow_server import MlflowServer

from omni_platform.tracking import TrackedRun, find_model, replay
from omni_platform.train.checkpoint import Storage
from omni_platform.train.config import TrainConfig
from omni_platform.train.launch import fit
from omni_platform.train.stop import RunStopped

AWAY_S = 20.0
# Of a step that takes a third of a second, and less than AWAY_S: no step waits until the server is back.
LONGEST_STEP_S = 15.0


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths).rstrip(os.pathsep))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path / "server")
    made.start()
    yield made
    made.kill()


class SlowTask(ToyTask):
    """The toy task; notes in a file when each forward pass begins, of which there is one per step."""

    def __init__(self, settings: dict[str, Any], **sharding: Any) -> None:
        super().__init__(settings, **sharding)
        self._path = Path(settings["steps_file"])
        self.module.register_forward_pre_hook(self._note)

    def _note(self, *_: Any) -> None:
        if self.module.training:
            with self._path.open("a") as file:
                file.write(f"{time.time()}\n")
            time.sleep(self.settings["step_s"])


def settings(folder: Path, server: MlflowServer, **changed: Any) -> TrainConfig:
    task = {"dropout": 0.2, "steps_file": str(folder / "steps.txt"), "step_s": 0.3, **changed.pop("task", {})}
    own = {"num_workers": 1, "gradient_accumulation_steps": 1, "engine": "torch", "max_steps": 80, "save_steps": 20}
    given = config(folder, "away", **{**own, "task": task, "tracking_uri": server.uri, **changed})
    return TrainConfig(**given, registered_model_name="toy-away")


def train(given: TrainConfig, **more: Any) -> dict[str, Any]:
    return fit(given, build_task=SlowTask, open_rows=functools.partial(ToyRows, 50), **more)


def step_times(folder: Path) -> list[float]:
    """When each step began, in seconds since the epoch."""
    path = folder / "steps.txt"
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def longest_step_s(folder: Path) -> float:
    times = step_times(folder)
    return max(later - earlier for earlier, later in pairwise(times))


def at_step(folder: Path, step: int, act: Callable[[], None]) -> threading.Thread:
    """Do something, beside the training, when a step begins."""

    def watch() -> None:
        while len(step_times(folder)) < step:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def points(run: TrackedRun, name: str) -> list[int]:
    """The step of every point that the store has, as often as it has it."""
    return sorted(point.step for point in run.client.get_metric_history(run.run_id, name))


def check_that_all_is_there(run: TrackedRun, steps: int) -> None:
    for name in ("loss", "text", "latent", "grad_norm", "learning_rate", "epoch", "tokens_per_s"):
        assert points(run, f"train/{name}") == list(range(1, steps + 1)), name
    found = run.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["learning_rate"] == "0.01"
    assert {"config.yaml", "loss_curves.png"} <= {a.path for a in run.client.list_artifacts(run.run_id)}
    assert points(run, "goodput/compute") == [steps]


def test_a_server_killed_at_step_2_and_back_after_20_s_delays_no_step_and_misses_no_metric(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back: list[float] = []

    def outage() -> None:
        server.kill()
        time.sleep(AWAY_S)
        server.start()
        back.append(time.time())

    watcher = at_step(tmp_path, 2, outage)
    summary = train(settings(tmp_path, server))
    watcher.join(timeout=120)
    assert (summary["steps"], len(step_times(tmp_path))) == (80, 80)
    times = step_times(tmp_path)
    assert times[1] + AWAY_S < times[-1], "the run was over before the server was back; make its steps longer"
    assert longest_step_s(tmp_path) < LONGEST_STEP_S
    where = summary["mlflow"]
    assert "spool" not in where
    assert where["model_version"] == 1
    check_that_all_is_there(TrackedRun(tracking_uri=server.uri, experiment_id="", run_id=where["run_id"]), 80)
    assert find_model("models:/toy-away@candidate", tracking_uri=server.uri).tags["step"] == "80"
    with pytest.raises(ValueError, match="not in the registry"):
        find_model("models:/toy-away@champion", tracking_uri=server.uri)


def test_a_server_that_never_comes_back_leaves_a_run_that_ends_and_says_where_its_spool_is(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = at_step(tmp_path, 2, server.kill)
    summary = train(settings(tmp_path, server, max_steps=20, save_steps=5, tracking_settle_s=2.0))
    watcher.join(timeout=60)
    assert summary["steps"] == 20
    assert longest_step_s(tmp_path) < LONGEST_STEP_S
    assert (Path(summary["export"]) / "model.json").is_file()
    assert (tmp_path / "away" / "loss_curves.png").is_file()
    spool = summary["mlflow"]["spool"]
    assert Path(spool).is_dir()
    assert f"send them with: python jobs/replay_tracking.py spool={spool}" in capsys.readouterr().out
    assert summary["mlflow"]["model_version"] is None

    server.start()
    settled, run = replay(spool, wait_s=60.0)
    assert settled.unsent == 0
    assert run is not None
    check_that_all_is_there(run, 20)
    model = find_model("models:/toy-away@candidate", tracking_uri=server.uri)
    assert (model.version, model.tags["step"], model.tags["chosen_by"]) == (1, "20", "last step")


def test_a_server_that_is_away_at_the_start_does_not_hold_the_start_up_and_a_stop_saves_all_the_same(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    watcher = at_step(tmp_path, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    began_s = time.time()
    given = settings(tmp_path, server, max_steps=24, save_steps=24, tracking_settle_s=2.0)
    with pytest.raises(RunStopped, match=r"away stopped after step \d+"):
        train(given)
    watcher.join(timeout=60)
    assert step_times(tmp_path)[0] - began_s < 200.0  # Ray's workers have to start; MLflow's client alone waits 340 s
    assert longest_step_s(tmp_path) < LONGEST_STEP_S
    assert capsys.readouterr().out.count("does not answer") == 1
    (saved,) = Storage.at(str(tmp_path / "away" / "checkpoints"), "away").steps()

    # The same command, now that the server is there, continues both the training and the record of it.
    server.start()
    summary = train(given)
    assert 4 <= saved < 24
    check_that_all_is_there(
        TrackedRun(tracking_uri=server.uri, experiment_id="", run_id=summary["mlflow"]["run_id"]), 24
    )


def test_the_error_that_ended_a_run_is_the_one_that_is_raised(server: MlflowServer, tmp_path: Path) -> None:
    watcher = at_step(tmp_path, 2, server.kill)
    given = settings(tmp_path, server, task={"step_s": 0.1, "fail_at": 7}, tracking_settle_s=2.0)
    with pytest.raises(ray.train.TrainingFailedError, match="row that cannot be collated"):
        train(given)
    watcher.join(timeout=60)
    server.start()
    _, run = replay(tmp_path / "away" / "checkpoints" / "away" / "tracking", wait_s=60.0)
    assert run is not None
    assert run.client.get_run(run.run_id).info.status == "FAILED"
    with pytest.raises(ValueError, match="not in the registry"):
        find_model("models:/toy-away@candidate", tracking_uri=server.uri)
