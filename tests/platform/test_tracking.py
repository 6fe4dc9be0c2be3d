from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.telemetry.utils import is_telemetry_disabled
from mlflow.tracking import MlflowClient

from omni_platform.tracking import Telemetry, TrackedRun, UnknownRunError, connect, metric_history, plan_run, store_uri
from omni_platform.tracking.store import flatten


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "GIT_SHA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = store_uri(None, output_dir=tmp_path_factory.mktemp("store"))
    connect(uri)
    return uri


def start(store: str, folder: Path, name: str = "r") -> Telemetry:
    """The driver's telemetry of a run whose outputs are in `folder`, set to running."""
    intent = plan_run(run_name=name, run_folder=folder / name, output_dir=folder, tracking_uri=store)
    telemetry = Telemetry(intent, owner=True)
    telemetry.status("RUNNING")
    return telemetry


def settled(telemetry: Telemetry) -> TrackedRun:
    """The run, once the store has everything."""
    assert telemetry.settle(60.0).unsent == 0
    assert telemetry.run is not None
    return telemetry.run


def test_default_store_is_sqlite_below_the_output_folder_with_artifacts_beside(tmp_path: Path) -> None:
    uri = store_uri(None, output_dir=tmp_path)
    assert uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    with Telemetry(plan_run(run_name="a", run_folder=tmp_path / "a", output_dir=tmp_path), owner=True) as telemetry:
        telemetry.artifact("note.txt", b"x")
        settled(telemetry)
    assert (tmp_path / "mlflow" / "mlflow.db").is_file()
    (found,) = (tmp_path / "mlflow" / "artifacts").rglob("note.txt")
    assert found.read_bytes() == b"x"


def test_sqlite_in_an_object_store_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/out is an object store, and .* set tracking_uri"):
        store_uri(None, output_dir="s3://bucket/out")
    assert store_uri("http://mlflow:5000", output_dir="s3://bucket/out") == "http://mlflow:5000"


def test_mlflow_sends_no_usage_events() -> None:
    assert is_telemetry_disabled()


def test_processes_that_meet_a_fresh_store_at_once_all_get_their_run(tmp_path: Path) -> None:
    """Without a lock all but one die of "table already exists"."""
    code = (
        "import sys; from omni_platform.tracking import Telemetry, plan_run\n"
        "folder, name = sys.argv[1:]\n"
        "plan = plan_run(run_name=name, run_folder=f'{folder}/{name}', output_dir=folder, experiment_name='fresh')\n"
        "input()\n"
        "with Telemetry(plan, owner=True) as telemetry:\n"
        "    telemetry.metrics(1, {'loss': 2.0})\n"
        "    print(telemetry.settle(60.0).unsent, telemetry.run.experiment_id)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in "abc"
    ]  # fmt: skip
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], "\n".join(outputs)
    assert "already exists" not in "".join(outputs)
    assert {output.splitlines()[-1] for output in outputs} == {"0 1"}
    runs = connect(store_uri(None, output_dir=tmp_path)).search_runs(["1"])
    assert sorted(run.info.run_name for run in runs) == ["a", "b", "c"]
    assert [run.data.metrics for run in runs] == [{"loss": 2.0}] * 3


def test_a_retry_writes_into_the_same_run(store: str, tmp_path: Path) -> None:
    with start(store, tmp_path) as first:
        first.status("FAILED")
        run = settled(first)
    assert run.client.get_run(run.run_id).info.status == "FAILED"
    with start(store, tmp_path) as second:
        assert settled(second) == run
        assert run.client.get_run(run.run_id).info.status == "RUNNING"
        second.status("KILLED")
        settled(second)
    assert run.client.get_run(run.run_id).info.status == "KILLED"


def test_a_run_that_was_deleted_is_replaced(store: str, tmp_path: Path) -> None:
    with start(store, tmp_path) as first:
        run = settled(first)
    run.client.delete_run(run.run_id)
    with start(store, tmp_path) as second:
        assert settled(second).run_id != run.run_id


def test_environment_names_store_experiment_and_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    with Telemetry(plan_run(run_name="e", run_folder=tmp_path / "e", output_dir=tmp_path), owner=True) as telemetry:
        run = settled(telemetry)
    assert run.tracking_uri == store
    assert run.client.get_experiment(run.experiment_id).name == "from the environment"

    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    with start(store, tmp_path, "f") as telemetry:
        assert settled(telemetry).run_id == run.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with start(store, tmp_path, "g") as telemetry, pytest.raises(UnknownRunError, match="MLFLOW_RUN_ID=0000"):
        telemetry.check(60.0)


def test_a_relative_store_means_the_same_file_in_every_process(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(store.removeprefix("sqlite:///")).parent)
    assert store_uri("sqlite:///mlflow.db") == store


def test_config_cards_and_origin_are_kept(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    monkeypatch.setenv("GIT_SHA", "abc")
    config = {"learning_rate": 0.1, "task": {"loss": {"latent": 0.5}, "empty": {}}}
    with start(store, tmp_path) as telemetry:
        telemetry.describe(config=config, config_yaml="learning_rate: 0.1\n", cards={"anchors.json": "{}"})
        run = settled(telemetry)
    data = run.client.get_run(run.run_id).data
    assert data.params == {"learning_rate": "0.1", "task.loss.latent": "0.5", "task.empty": "{}"}
    assert data.tags["ray_submission_id"] == "raysubmit_1"
    assert data.tags["git_sha"] == "abc"
    assert data.tags["code_version"]
    assert {a.path for a in run.client.list_artifacts(run.run_id)} == {"cards", "config.yaml"}
    assert [a.path for a in run.client.list_artifacts(run.run_id, "cards")] == ["cards/anchors.json"]

    with start(store, tmp_path) as telemetry:
        telemetry.describe(config={"learning_rate": 0.2, "new": 1}, config_yaml="learning_rate: 0.2\n")
        settled(telemetry)
    data = run.client.get_run(run.run_id).data
    assert (data.params["learning_rate"], data.params["new"]) == ("0.1", "1")
    assert data.tags["resumed_with.learning_rate"] == "0.2"
    assert "resumed_with.new" not in data.tags


def test_more_parameters_and_metrics_than_one_request_takes(store: str, tmp_path: Path) -> None:
    with start(store, tmp_path) as telemetry:
        telemetry.params({f"key{i}": i for i in range(250)})
        for step in range(1, 1301):
            telemetry.metrics(step, {"loss": step / 7})
        run = settled(telemetry)
    assert len(run.client.get_run(run.run_id).data.params) == 250
    assert metric_history(run, "loss") == {step: step / 7 for step in range(1, 1301)}


def test_of_a_step_that_was_run_twice_the_later_value_counts(store: str, tmp_path: Path) -> None:
    with start(store, tmp_path) as first:
        first.metrics(1, {"loss": 3.0})
        first.metrics(2, {"loss": 2.0})
        run = settled(first)
    with start(store, tmp_path) as second:
        second.metrics(2, {"loss": 2.5})
        settled(second)
        assert second.history() == {"loss": {1: 3.0, 2: 2.5}}  # from the spool, for the curves
    assert metric_history(run, "loss") == {1: 3.0, 2: 2.5}


def test_what_the_store_never_takes_holds_nothing_up(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(store, tmp_path) as telemetry:
        telemetry.metrics(1, {"loss": 3.0, "no such?name": 1.0})
        telemetry.metrics(2, {"loss": 2.0})
        run = settled(telemetry)
    assert metric_history(run, "loss") == {1: 3.0, 2: 2.0}
    (refused,) = (tmp_path / "r" / "tracking").glob("*.refused")
    assert refused.read_text().count("\n") == 1
    assert '"no such?name": 1.0' in refused.read_text()
    assert "metrics refused by the tracker: Invalid value" in capsys.readouterr().out


def test_a_process_of_the_run_waits_for_its_owner_to_make_it_and_leaves_the_rest_to_it(
    store: str, tmp_path: Path
) -> None:
    intent = plan_run(run_name="r", run_folder=tmp_path / "r", output_dir=tmp_path, tracking_uri=store)
    with Telemetry(intent) as worker:
        worker.metrics(1, {"loss": 3.0})
        assert worker.settle(1.0).unsent == 1
        assert worker.run is None
    with Telemetry(intent, owner=True) as owner:
        run = settled(owner)
        assert metric_history(run, "loss") == {1: 3.0}
        with Telemetry(intent) as worker:
            worker.metrics(2, {"loss": 2.0})
            assert worker.settle(60.0).unsent == 0
            assert worker.run == run
    assert metric_history(run, "loss") == {1: 3.0, 2: 2.0}
    assert len(MlflowClient(store).search_runs([run.experiment_id], f"tags.run_key = '{intent.key}'")) == 1


def test_flatten_cuts_what_the_store_would_refuse() -> None:
    assert flatten({"a": {"b": [1, 2]}}) == {"a.b": "[1, 2]"}
    assert len(flatten({"a": "x" * 9000})["a"]) == 6000
