"""The tracking store: where it is, how it is made, and what is read from it.

Where nothing else is said the store is a sqlite file below the output folder, with the artifacts beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_platform import storage
from omni_platform.artifacts import code_version

# MLflow reads its own switch while it is being imported, and would send usage events otherwise.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_DEFAULT_EXPERIMENT = "latentomni"
_MAX_PARAM_CHARS = 6000
_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run that a tracking store has: all that is needed to read it."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        return connect(self.tracking_uri)


def connect(uri: str) -> MlflowClient:
    """A client of a store. A sqlite store that is not there yet is made, by one process while the others wait."""
    with _only_process(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def metric_history(run: TrackedRun, name: str) -> dict[int, float]:
    """Value by step, in the order of steps; of a step that was run twice, the later value."""
    points = sorted(run.client.get_metric_history(run.run_id, name), key=lambda m: (m.step, m.timestamp))
    return {point.step: point.value for point in points}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b` keys with text values, cut to the length MLflow takes."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_MAX_PARAM_CHARS]
    return flat


def store_uri(given: str | None, *, output_dir: str | Path | None = None) -> str:
    """The store's URI, meaning the same in every process: as given, else MLFLOW_TRACKING_URI, else sqlite below
    `output_dir`.

    Raises ValueError where nothing names a store, or the output folder is not on a file system, where sqlite could
    not live.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith(_SQLITE):
        # Training workers run in another working directory than the job that started them.
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
    if uri:
        return uri
    if output_dir is None:
        raise ValueError("no tracking store is named: set MLFLOW_TRACKING_URI (or tracking_uri in the config)")
    if storage.is_remote(output_dir):
        raise ValueError(
            f"output_dir={output_dir} is an object store, and the default tracking store is an sqlite file beside the "
            "output: set tracking_uri (or MLFLOW_TRACKING_URI) to an MLflow server or sqlite:///FILE"
        )
    return f"{_SQLITE}{storage.local_path(output_dir).absolute() / 'mlflow' / 'mlflow.db'}"


def experiment_or_default(name: str | None) -> str:
    """The experiment's name: as given, else MLFLOW_EXPERIMENT_NAME, else the project's own."""
    return name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _DEFAULT_EXPERIMENT


def find_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    location = None
    if uri.startswith(_SQLITE):
        # MLflow's own choice would be `mlruns` in the working directory, which differs between processes.
        location = str(Path(uri.removeprefix(_SQLITE)).parent / "artifacts")
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:  # another process was quicker
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


@contextmanager
def _only_process(uri: str) -> Iterator[None]:
    """Within the block no other process connects to the same sqlite store: two that meet an empty file would both
    create its tables, and one of them would fail."""
    if not uri.startswith(_SQLITE):
        yield
        return
    database = Path(uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def origin_tags() -> dict[str, str]:
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
