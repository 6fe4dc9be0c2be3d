from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from omni_platform.tracking import (
    CANDIDATE,
    CHAMPION,
    connect,
    find_model,
    log_evaluation,
    promote,
    register_model,
    resolve_model,
    store_uri,
)


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = store_uri(None, output_dir=tmp_path_factory.mktemp("store"))
    connect(uri).create_experiment("models", artifact_location=str(tmp_path_factory.mktemp("artifacts")))
    return uri


@pytest.fixture
def client(store: str) -> MlflowClient:
    return connect(store)


def new_run(client: MlflowClient) -> str:
    return client.create_run(client.get_experiment_by_name("models").experiment_id).info.run_id


def export(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "method.json").write_text(text)
    return folder


def test_a_run_registers_a_candidate_and_serves_nothing(client: MlflowClient, store: str, tmp_path: Path) -> None:
    first = register_model(export(tmp_path / "e"), "m", new_run(client), step=5, tracking_uri=store)
    second = register_model(
        export(tmp_path / "e", '{"second": true}'), "m", new_run(client), step=7, tags={"a": "b"}, tracking_uri=store
    )
    assert (first, second) == (1, 2)
    assert (resolve_model("models:/m@candidate", tracking_uri=store) / "method.json").read_text() == '{"second": true}'
    with pytest.raises(ValueError, match="models:/m@champion is not in the registry"):
        resolve_model("models:/m@champion", tracking_uri=store)
    assert (resolve_model("models:/m/1", tracking_uri=store) / "method.json").read_text() == "{}"
    found = find_model("models:/m@candidate", tracking_uri=store)
    assert (found.name, found.version, found.tags["step"], found.tags["a"]) == ("m", 2, "7", "b")
    assert resolve_model(tmp_path / "e") == tmp_path / "e"


def test_promotion_names_the_version_before_and_leads_back(client: MlflowClient, store: str, tmp_path: Path) -> None:
    for step in (1, 2):
        register_model(export(tmp_path / "e", str(step)), "p", new_run(client), step=step, tracking_uri=store)
    done = promote("p", "1", tracking_uri=store)
    assert (done.version, done.previous) == (1, None)
    done = promote("p", CANDIDATE, tracking_uri=store)
    assert (done.version, done.previous) == (2, 1)
    assert find_model("models:/p@champion", tracking_uri=store).version == 2
    tags = client.get_model_version("p", "2").tags
    assert tags["champion.previous"] == "1"
    assert tags["champion.by"] and tags["champion.at"].startswith("20")
    assert promote("p", "1", to=CHAMPION, tracking_uri=store).previous == 2
    assert find_model("models:/p@champion", tracking_uri=store).version == 1
    assert find_model("models:/p@candidate", tracking_uri=store).version == 2
    with pytest.raises(ValueError, match="models:/p/9 is not in the registry"):
        promote("p", "9", tracking_uri=store)
    with pytest.raises(ValueError, match="models:/none@candidate is not in the registry"):
        promote("none", CANDIDATE, tracking_uri=store)


def test_the_job_that_promotes_prints_the_way_back(client: MlflowClient, store: str, tmp_path: Path) -> None:
    for step in (1, 2):
        register_model(export(tmp_path / "e", str(step)), "job", new_run(client), step=step, tracking_uri=store)
    promote("job", "1", tracking_uri=store)
    job = str(Path(__file__).parents[2] / "jobs" / "promote.py")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, job, "name=job", f"tracking_uri={store}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    done = call()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == [
        "promote: job@champion is version 2, before: 1",
        "back: python jobs/promote.py name=job which=1 to=champion",
    ]
    refused = call("which=7")
    assert refused.returncode == 1
    assert "promote: models:/job/7 is not in the registry" in refused.stderr


def test_the_same_step_of_a_run_is_one_version(client: MlflowClient, store: str, tmp_path: Path) -> None:
    run_id = new_run(client)
    first = register_model(export(tmp_path / "e", "5"), "again", run_id, step=5, tracking_uri=store)
    assert register_model(tmp_path / "e", "again", run_id, step=5, tracking_uri=store) == first
    longer = register_model(export(tmp_path / "e", "9"), "again", run_id, step=9, tracking_uri=store)
    assert longer == first + 1
    for version, step in ((first, 5), (longer, 9)):  # neither has taken the place of the other
        found = resolve_model(f"models:/again/{version}", tracking_uri=store)
        assert (found / "method.json").read_text() == str(step)
    register_model(tmp_path / "e", "again", run_id, step=5, tracking_uri=store)  # sent late
    assert find_model("models:/again@candidate", tracking_uri=store).version == longer


def test_an_evaluation_is_linked_to_the_version_that_it_measured(
    client: MlflowClient, store: str, tmp_path: Path
) -> None:
    run_id = new_run(client)
    register_model(export(tmp_path / "e"), "measured", run_id, step=3, tracking_uri=store)
    report = {"conditions": {"own": {"all": {"accuracy": 0.75}, "by_type": {"colour": {"accuracy": 0.5}}}}}
    model = find_model("models:/measured@candidate", tracking_uri=store)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    log_evaluation(run_id, report, tmp_path / "out", model=model, dataset_fingerprint="d1", tracking_uri=store)
    tags = client.get_model_version("measured", "1").tags
    assert (tags["eval.own"], tags["eval.dataset_fingerprint"], tags["eval.run_id"]) == ("0.7500", "d1", run_id)
    data = client.get_run(run_id).data
    assert data.metrics == {"eval/own": 0.75, "eval/own/colour": 0.5}
    assert data.tags["evaluated_model"] == "measured/1"
    assert [a.path for a in client.list_artifacts(run_id, "evaluation")] == ["evaluation/report.json"]


def test_what_is_not_in_the_registry_is_said(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="models:/none@champion is not in the registry"):
        resolve_model("models:/none@champion", tracking_uri=store)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        resolve_model("models:/none@champion")
    with pytest.raises(ValueError, match="neither a folder nor"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="export the model first"):
        register_model(tmp_path / "nothing", "m", "run", tracking_uri=store)
