"""Experiment tracking and the model registry: MLflow, reached the same way by every job.

Where nothing else is said the store is a sqlite file below the output folder, with the artifacts beside it.
A run's id is kept beside the run's outputs, so that a retry (on the same cluster or on a fresh one) writes
into the same run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omni_platform import storage
from omni_platform.artifacts import code_version

# MLflow reads its own switch while it is being imported, and would send usage events otherwise.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow.artifacts
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
_DEFAULT_EXPERIMENT = "latentomni"
_RUN_ID_FILE = "mlflow_run.json"
_MAX_PARAM_CHARS = 6000
_FLUSH_INTERVAL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run in a tracking store: all that another process needs to write into it."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)


def open_run(
    *,
    run_name: str,
    run_folder: str | Path,
    output_dir: str | Path,
    tracking_uri: str | None = None,
    experiment_name: str | None = None,
) -> TrackedRun:
    """The run of that name, as it was left by an earlier attempt or newly made, in status RUNNING.

    `run_folder` (a path or URI) keeps the id between attempts. Where an argument is
    None: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, then sqlite below `output_dir` and "latentomni".
    MLFLOW_RUN_ID, if set, names the run to write into; ValueError where that run does not exist.
    """
    uri = _store_uri(tracking_uri) or _make_local_store(output_dir)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    named = os.environ.get("MLFLOW_RUN_ID")
    run = _find_run(client, named or _read_run_id(run_folder))
    if named and run is None:
        raise ValueError(f"MLFLOW_RUN_ID={named} is not a run of {uri}; unset it, or set MLFLOW_TRACKING_URI")
    if run is None:
        name = experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT
        run = client.create_run(_experiment_id(client, uri, name), run_name=run_name)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    note = json.dumps({"run_id": run.info.run_id})
    storage.write_bytes(storage.join(run_folder, _RUN_ID_FILE), note.encode())
    return TrackedRun(tracking_uri=uri, experiment_id=run.info.experiment_id, run_id=run.info.run_id)


def prepare_store(*, output_dir: str | Path, tracking_uri: str | None = None, experiment_name: str) -> None:
    """Make store and experiment where they do not exist: for a process that then lets several open runs at once.

    Two processes that meet an empty sqlite file both create its tables, and one of them fails.
    """
    uri = _store_uri(tracking_uri) or _make_local_store(output_dir)
    _experiment_id(MlflowClient(tracking_uri=uri, registry_uri=uri), uri, experiment_name)


def close_run(run: TrackedRun, status: Status) -> None:
    """End the run with the status a person will see in the list of runs."""
    run.client.set_terminated(run.run_id, status=status)


def describe_run(
    run: TrackedRun,
    *,
    config: Mapping[str, Any],
    config_yaml: str,
    cards: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write down what the run is made of: flattened config, its YAML, the cards of its data, tags.

    Parameters cannot be changed in MLflow: what a later attempt sets differently becomes a tag
    `resumed_with.<key>`. `cards` is the text of each card by file name.
    """
    flat, known = flatten(config), run.client.get_run(run.run_id).data.params
    new = [Param(key, text) for key, text in flat.items() if key not in known]
    changed = {f"resumed_with.{k}": text for k, text in flat.items() if known.get(k, text) != text}
    every_tag = {**_origin_tags(), **(tags or {}), **changed}
    run.client.log_batch(run.run_id, params=new, tags=[RunTag(k, v) for k, v in every_tag.items()])
    run.client.log_text(run.run_id, config_yaml, "config.yaml")
    for name, text in (cards or {}).items():
        run.client.log_text(run.run_id, text, f"cards/{name}")


class MetricWriter:
    """Collects the figures of a run and sends them in batches, so that a step never waits for the store."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._client = run, run.client
        self._waiting: list[Metric] = []
        self._sent_at_s = time.monotonic()

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of one step; they are sent once the last batch is two seconds old."""
        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now_ms, step) for name, value in figures.items()]
        if time.monotonic() - self._sent_at_s > _FLUSH_INTERVAL_S or len(self._waiting) > 800:
            self.flush()

    def flush(self) -> None:
        """Send what waits. Called before a checkpoint, whose steps are not run again after a failure."""
        if self._waiting:
            self._client.log_batch(self._run.run_id, metrics=self._waiting)
        self._waiting, self._sent_at_s = [], time.monotonic()


def metric_history(run: TrackedRun, name: str) -> dict[int, float]:
    """Value by step, in the order of steps; of a step that was run twice, the later value."""
    points = sorted(run.client.get_metric_history(run.run_id, name), key=lambda m: (m.step, m.timestamp))
    return {point.step: point.value for point in points}


def register_model(
    folder: str | Path,
    name: str,
    alias: str | None,
    run_id: str,
    *,
    step: int | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Keep an exported model folder as an artifact of the run and as a new version of a registered model.

    Returns the version number; `alias` then points to it. A run that is started again when it is already finished gets
    the version that its `step` has, and no other. Raises ValueError for an empty or missing folder.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"cannot register {folder}: it is not a folder with files; export the model first")
    client, _ = _registry(tracking_uri)
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if step is not None and (same := [v for v in known if v.tags.get("step") == str(step)]):
        return int(same[0].version)
    place = "model" if step is None else f"model-{step}"
    client.log_artifacts(run_id, str(folder), place)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    tags = {} if step is None else {"step": str(step)}
    version = client.create_model_version(name, source, run_id=run_id, tags=tags)
    if alias:
        client.set_registered_model_alias(name, alias, str(version.version))
    return int(version.version)


def resolve_model(uri: str | Path, *, tracking_uri: str | None = None) -> Path:
    """The local folder of `models:/name@alias` or `models:/name/version`; a folder is returned as it is.

    Artifacts that are not on this machine are downloaded. Raises ValueError where nothing is found.
    """
    text = str(uri)
    if not text.startswith("models:/"):
        if not Path(text).is_dir():
            raise ValueError(f"{text} is neither a folder nor of the form models:/name@alias")
        return Path(text)
    client, store = _registry(tracking_uri)
    name, sign, which = _split_model_uri(text.removeprefix("models:/"))
    try:
        number = str(client.get_model_version_by_alias(name, which).version) if sign == "@" else which
        source = client.get_model_version_download_uri(name, number)
    except MlflowException as error:
        raise ValueError(f"{text} is not in the registry at {store}: {error.message}") from error
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=store))


def log_evaluation(
    run_id: str, report: Mapping[str, Any], folder: str | Path, *, tracking_uri: str | None = None
) -> None:
    """Put an evaluation's accuracies into a run as `eval/<condition>` metrics, and its files beside them.

    Raises ValueError where no tracking store is named.
    """
    client, _ = _registry(tracking_uri)
    for condition, figures in report["conditions"].items():
        client.log_metric(run_id, f"eval/{condition}", figures["all"]["accuracy"])
        for kind, value in figures["by_type"].items():
            client.log_metric(run_id, f"eval/{condition}/{kind}", value["accuracy"])
    if Path(folder).is_dir():
        client.log_artifacts(run_id, str(folder), "evaluation")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b` keys with text values, cut to the length MLflow takes."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_MAX_PARAM_CHARS]
    return flat


def _split_model_uri(path: str) -> tuple[str, str, str]:
    return path.rpartition("@") if "@" in path else path.partition("/")


def _registry(tracking_uri: str | None) -> tuple[MlflowClient, str]:
    uri = _store_uri(tracking_uri)
    if not uri:
        raise ValueError("no model registry is named: set MLFLOW_TRACKING_URI (or tracking_uri in the config)")
    return MlflowClient(tracking_uri=uri, registry_uri=uri), uri


def _store_uri(given: str | None) -> str | None:
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("sqlite:///"):
        # Training workers run in another working directory than the job that started them.
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def _make_local_store(output_dir: str | Path) -> str:
    if storage.is_remote(output_dir):
        raise ValueError(
            f"output_dir={output_dir} is an object store, and the default tracking store is an sqlite file beside the "
            "output: set tracking_uri (or MLFLOW_TRACKING_URI) to an MLflow server or sqlite:///FILE"
        )
    folder = storage.local_path(output_dir).absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None
    if uri.startswith("sqlite:///"):
        # MLflow's own choice would be `mlruns` in the working directory, which differs between processes.
        location = str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts")
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:  # another process was quicker
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def _find_run(client: MlflowClient, run_id: str | None):
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException:  # the store was moved or emptied since
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _read_run_id(run_folder: str | Path) -> str | None:
    try:
        return json.loads(storage.read_bytes(storage.join(run_folder, _RUN_ID_FILE)))["run_id"]
    except FileNotFoundError:
        return None


def _origin_tags() -> dict[str, str]:
    """Where the run comes from: code version, entry point and, under Ray, its submission id."""
    version = code_version()
    tags = {
        "code_version": version,
        "mlflow.source.name": sys.argv[0] or "python",
        "mlflow.source.type": "JOB",
    }
    # An image has no git; whoever builds it knows the commit.
    commit = os.environ.get("GIT_SHA") or version.partition("+g")[2]
    if commit:
        tags |= {"git_sha": commit, "mlflow.source.git.commit": commit}
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submission_id = (job.get("metadata") or {}).get("job_submission_id")
    return tags | ({"ray_submission_id": submission_id} if submission_id else {})
