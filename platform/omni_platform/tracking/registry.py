"""The model registry: versions that runs register, the alias that serving follows, and the way back.

A run registers its model with the alias `candidate`. `champion` is moved by `promote` alone.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from omni_platform.artifacts import folder_fingerprint
from omni_platform.tracking.store import connect, store_uri

CANDIDATE = "candidate"
CHAMPION = "champion"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model on this machine, and the version it is where it comes from the registry."""

    folder: Path
    name: str | None = None
    version: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the version: `step`, `export_fingerprint` and what evaluations have added."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What `promote` did."""

    version: int
    previous: int | None
    """The version that the alias pointed to before."""


def register_model(
    folder: str | Path,
    name: str,
    run_id: str,
    *,
    step: int | None = None,
    tags: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Keep an exported model folder as an artifact of the run and as a new version of a registered model.

    Returns the version number. The alias `candidate` points to it, unless a later version has it. To register the
    same step of a run again changes nothing. Raises ValueError for an empty or missing folder.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"cannot register {folder}: it is not a folder with files; export the model first")
    client = connect(store_uri(tracking_uri))
    version = _find_version(client, name, run_id, step)
    if version is None:
        place = "model" if step is None else f"model-{step}"
        client.log_artifacts(run_id, str(folder), place)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
        about = {**(tags or {}), "export_fingerprint": folder_fingerprint(folder)}
        about |= {} if step is None else {"step": str(step)}
        version = int(client.create_model_version(name, source, run_id=run_id, tags=about).version)
    if version >= (_version_of(client, name, CANDIDATE) or 0):
        client.set_registered_model_alias(name, CANDIDATE, str(version))
    return version


def promote(name: str, which: str, *, to: str = CHAMPION, tracking_uri: str | None = None) -> Promotion:
    """Point an alias at a version, given by its number or by another alias; who did it and when becomes tags of it.

    Raises ValueError where the registry has no such version.
    """
    uri = store_uri(tracking_uri)
    client = connect(uri)
    found = _get_version(client, name, which, uri)
    version, previous = int(found.version), _version_of(client, name, to)
    tags = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": _who(), "previous": str(previous or "")}
    for key, text in tags.items():
        client.set_model_version_tag(name, str(version), f"{to}.{key}", text)
    client.set_registered_model_alias(name, to, str(version))
    return Promotion(version=version, previous=previous)


def resolve_model(uri: str | Path, *, tracking_uri: str | None = None) -> Path:
    """The local folder of `models:/name@alias` or `models:/name/version`; a folder is returned as it is.

    Artifacts that are not on this machine are downloaded. Raises ValueError where nothing is found.
    """
    return find_model(uri, tracking_uri=tracking_uri).folder


def find_model(uri: str | Path, *, tracking_uri: str | None = None) -> ResolvedModel:
    """As `resolve_model`, with the version that the folder is."""
    text = str(uri)
    if not text.startswith("models:/"):
        if not Path(text).is_dir():
            raise ValueError(f"{text} is neither a folder nor of the form models:/name@alias")
        return ResolvedModel(folder=Path(text))
    store = store_uri(tracking_uri)
    client = connect(store)
    path = text.removeprefix("models:/")
    name, _, which = path.rpartition("@") if "@" in path else path.partition("/")
    found = _get_version(client, name, which, store)
    source = client.get_model_version_download_uri(name, str(found.version))
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=store))
    return ResolvedModel(folder=folder, name=name, version=int(found.version), tags=dict(found.tags))


def log_evaluation(
    run_id: str | None,
    report: Mapping[str, Any],
    folder: str | Path,
    *,
    model: ResolvedModel | None = None,
    dataset_fingerprint: str = "",
    tracking_uri: str | None = None,
) -> None:
    """Put an evaluation where it is looked for: accuracies (`eval/<condition>`) and files into a run, and the
    accuracies, the data and the report's place as tags of the registered version that was measured.

    Raises ValueError where no tracking store is named.
    """
    client = connect(store_uri(tracking_uri))
    accuracies = {name: found["all"]["accuracy"] for name, found in report["conditions"].items()}
    if model is not None and model.name is not None:
        tags = {f"eval.{condition}": f"{value:.4f}" for condition, value in accuracies.items()}
        tags |= {
            "eval.dataset_fingerprint": dataset_fingerprint,
            "eval.report": str(folder),
            "eval.run_id": run_id or "",
        }
        for key, text in tags.items():
            client.set_model_version_tag(model.name, str(model.version), key, text)
    if run_id is None:
        return
    for condition, found in report["conditions"].items():
        client.log_metric(run_id, f"eval/{condition}", accuracies[condition])
        for kind, value in found["by_type"].items():
            client.log_metric(run_id, f"eval/{condition}/{kind}", value["accuracy"])
    if model is not None:
        named = f"{model.name}/{model.version}" if model.name else folder_fingerprint(model.folder)
        client.set_tag(run_id, "evaluated_model", named)
    if Path(folder).is_dir():
        client.log_artifacts(run_id, str(folder), "evaluation")


def _find_version(client: MlflowClient, name: str, run_id: str, step: int | None) -> int | None:
    """The version that a run has registered for a step."""
    if step is None:
        return None
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    same = [version for version in known if version.tags.get("step") == str(step)]
    return int(same[0].version) if same else None


def _version_of(client: MlflowClient, name: str, alias: str) -> int | None:
    try:
        return int(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _get_version(client: MlflowClient, name: str, which: str, store: str) -> ModelVersion:
    try:
        if which.isdigit():
            return client.get_model_version(name, which)
        return client.get_model_version_by_alias(name, which)
    except MlflowException as error:
        sign = "/" if which.isdigit() else "@"
        raise ValueError(f"models:/{name}{sign}{which} is not in the registry at {store}: {error.message}") from error


def _who() -> str:
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return f"uid {os.getuid()}"
