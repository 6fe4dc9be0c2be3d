from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.telemetry.utils import is_telemetry_disabled

from omni_platform.tracking import (
    MetricWriter,
    TrackedRun,
    close_run,
    describe_run,
    flatten,
    metric_history,
    open_run,
    register_model,
    resolve_model,
)


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "GIT_SHA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    return open_run(run_name="first", run_folder=folder / "first", output_dir=folder).tracking_uri


@pytest.fixture
def run(store: str, tmp_path: Path) -> TrackedRun:
    return open_run(run_name="a", run_folder=tmp_path / "a", output_dir=tmp_path, tracking_uri=store)


def test_default_store_is_sqlite_below_the_output_folder_with_artifacts_beside(store: str) -> None:
    database = Path(store.removeprefix("sqlite:///"))
    assert database.name == "mlflow.db"
    assert database.is_file()
    run = open_run(
        run_name="b",
        run_folder=database.parent / "b",
        output_dir=database.parent.parent,  # the folder for which the fixture made this store
    )
    assert run.tracking_uri == store
    run.client.log_text(run.run_id, "x", "note.txt")
    assert list((database.parent / "artifacts").rglob("note.txt"))


def test_telemetry_is_off() -> None:
    assert is_telemetry_disabled()


def test_a_retry_writes_into_the_same_run(store: str, tmp_path: Path) -> None:
    def attempt() -> TrackedRun:
        return open_run(run_name="r", run_folder=tmp_path / "r", output_dir=tmp_path, tracking_uri=store)

    first = attempt()
    close_run(first, "FAILED")
    assert first.client.get_run(first.run_id).info.status == "FAILED"
    second = attempt()
    assert second == first
    assert first.client.get_run(first.run_id).info.status == "RUNNING"
    close_run(second, "KILLED")
    assert first.client.get_run(first.run_id).info.status == "KILLED"


def test_a_run_that_was_deleted_is_replaced(run: TrackedRun, store: str, tmp_path: Path) -> None:
    run.client.delete_run(run.run_id)
    again = open_run(run_name="a", run_folder=tmp_path / "a", output_dir=tmp_path, tracking_uri=store)
    assert again.run_id != run.run_id


def test_environment_names_store_experiment_and_run(
    run: TrackedRun, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    made = open_run(run_name="e", run_folder=tmp_path / "e", output_dir=tmp_path)
    assert made.tracking_uri == store
    assert made.client.get_experiment(made.experiment_id).name == "from the environment"

    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    assert open_run(run_name="f", run_folder=tmp_path / "f", output_dir=tmp_path).run_id == run.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ValueError, match="MLFLOW_RUN_ID=0000"):
        open_run(run_name="g", run_folder=tmp_path / "g", output_dir=tmp_path)


def test_a_relative_store_means_the_same_file_in_every_process(
    run: TrackedRun, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(store.removeprefix("sqlite:///")).parent)
    again = open_run(run_name="a", run_folder=tmp_path / "a", output_dir=tmp_path, tracking_uri="sqlite:///mlflow.db")
    assert again == run


def test_describe_run_keeps_config_cards_and_origin(run: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    monkeypatch.setenv("GIT_SHA", "abc")
    config = {"learning_rate": 0.1, "task": {"loss": {"latent": 0.5}, "empty": {}}}
    describe_run(run, config=config, config_yaml="learning_rate: 0.1\n", cards={"anchors.json": "{}"})
    data = run.client.get_run(run.run_id).data
    assert data.params == {"learning_rate": "0.1", "task.loss.latent": "0.5", "task.empty": "{}"}
    assert data.tags["ray_submission_id"] == "raysubmit_1"
    assert data.tags["git_sha"] == "abc"
    assert data.tags["code_version"]
    assert {a.path for a in run.client.list_artifacts(run.run_id)} == {"cards", "config.yaml"}
    assert [a.path for a in run.client.list_artifacts(run.run_id, "cards")] == ["cards/anchors.json"]

    describe_run(run, config={"learning_rate": 0.2, "new": 1}, config_yaml="learning_rate: 0.2\n")
    data = run.client.get_run(run.run_id).data
    assert (data.params["learning_rate"], data.params["new"]) == ("0.1", "1")
    assert data.tags["resumed_with.learning_rate"] == "0.2"
    assert "resumed_with.new" not in data.tags


def test_more_parameters_than_one_batch_takes(run: TrackedRun) -> None:
    describe_run(run, config={f"key{i}": i for i in range(250)}, config_yaml="")
    assert len(run.client.get_run(run.run_id).data.params) == 250


def test_metrics_wait_for_a_batch_and_the_later_value_of_a_step_counts(run: TrackedRun) -> None:
    writer = MetricWriter(run)
    writer.add(1, {"loss": 3.0})
    writer.add(2, {"loss": 2.0})
    assert metric_history(run, "loss") == {}
    writer.flush()
    assert metric_history(run, "loss") == {1: 3.0, 2: 2.0}
    resumed = MetricWriter(run)
    resumed.add(2, {"loss": 2.5})
    resumed.flush()
    assert metric_history(run, "loss") == {1: 3.0, 2: 2.5}


def test_a_registered_model_is_found_by_alias_and_by_version(
    run: TrackedRun, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "method.json").write_text("{}")
    first = register_model(export, "m", "champion", run.run_id, tracking_uri=store)
    (export / "method.json").write_text('{"second": true}')
    other = open_run(run_name="o", run_folder=tmp_path / "o", output_dir=tmp_path, tracking_uri=store)
    second = register_model(export, "m", "champion", other.run_id, tracking_uri=store)
    assert (first, second) == (1, 2)
    found = resolve_model("models:/m@champion", tracking_uri=store)
    assert (found / "method.json").read_text() == '{"second": true}'
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert (resolve_model("models:/m/1") / "method.json").read_text() == "{}"
    assert resolve_model(export) == export


def test_a_finished_run_that_is_started_again_registers_nothing_new(
    run: TrackedRun, store: str, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "method.json").write_text('{"step": 5}')
    first = register_model(export, "again", "champion", run.run_id, step=5, tracking_uri=store)
    assert register_model(export, "again", "champion", run.run_id, step=5, tracking_uri=store) == first
    (export / "method.json").write_text('{"step": 9}')
    longer = register_model(export, "again", "champion", run.run_id, step=9, tracking_uri=store)
    assert longer == first + 1
    for version, step in ((first, 5), (longer, 9)):  # neither has taken the place of the other
        found = resolve_model(f"models:/again/{version}", tracking_uri=store)
        assert (found / "method.json").read_text() == f'{{"step": {step}}}'


def test_what_is_not_in_the_registry_is_said(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="models:/none@champion is not in the registry"):
        resolve_model("models:/none@champion", tracking_uri=store)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        resolve_model("models:/none@champion")
    with pytest.raises(ValueError, match="neither a folder nor"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="export the model first"):
        register_model(tmp_path / "nothing", "m", None, "run", tracking_uri=store)


def test_flatten_cuts_what_the_store_would_refuse() -> None:
    assert flatten({"a": {"b": [1, 2]}}) == {"a.b": "[1, 2]"}
    assert len(flatten({"a": "x" * 9000})["a"]) == 6000
