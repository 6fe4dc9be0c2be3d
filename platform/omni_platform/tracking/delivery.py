"""Applying the records of a spool to MLflow.

Every record can be applied twice with the result of once, so that one whose answer was lost is simply sent again: the
store's key of a metric is (name, time, step, run, value), tags and files replace what has their name, a run is looked
up by its key before it is made, a version by its run and step.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from omni_platform import storage
from omni_platform.artifacts import folder_fingerprint
from omni_platform.tracking.registry import register_model
from omni_platform.tracking.spool import Record
from omni_platform.tracking.store import TrackedRun, connect, find_experiment

NOTE_NAME = "mlflow_run.json"
KEY_TAG = "run_key"
# MLflow's own 7 retries of up to 120 s each would keep the thread, and whoever settles it, for minutes.
_REQUEST_TIMEOUT_S, _UPLOAD_TIMEOUT_S = 20, 600
_NEVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST",
          "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "NOT_IMPLEMENTED")  # fmt: skip
T = TypeVar("T")


class TrackerAwayError(Exception):
    """The tracker does not answer now; the same call may work later."""


class RecordRefusedError(Exception):
    """The tracker will never take this record."""


class UnknownRunError(ValueError):
    """MLFLOW_RUN_ID names a run that the store does not have."""


@dataclass(frozen=True, kw_only=True)
class RunIntent:
    """A run as its processes know it, whether or not the tracker has answered yet. See `plan_run`."""

    tracking_uri: str
    experiment_name: str
    run_name: str
    run_folder: str
    """A path or URI; keeps the run's id, and its spool where it is on a file system."""
    key: str
    """What the run is found by before its id is known: a tag of it."""
    attempt: str
    """Another one for every start of the run."""
    given_run_id: str | None
    """From MLFLOW_RUN_ID: the run to write into."""
    started_ms: int


class Delivery:
    """Sends records of one run. Its methods may wait for the network; for a background thread."""

    def __init__(self, intent: RunIntent, *, owner: bool) -> None:
        """The `owner` makes the run where there is none; any other process waits until the owner has."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_REQUEST_TIMEOUT_S))
        self._intent, self._owner = intent, owner
        self._client: MlflowClient | None = None
        self.run: TrackedRun | None = None
        """The run, once the tracker has answered."""
        self.version: int | None = None
        """The version of the model that was registered."""
        self.uploading = False
        """Whether a model is on its way, which takes as long as it takes."""

    def open(self) -> None:
        """Find or make the run. Raises TrackerAwayError, or UnknownRunError where MLFLOW_RUN_ID is wrong."""
        if self.run is None:
            self.run = _guarded(self._make_run if self._owner else self._await_run)

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records of one kind, in order. Raises TrackerAwayError or RecordRefusedError."""
        self.open()
        assert self.run is not None and self._client is not None
        client, run_id = self._client, self.run.run_id
        if records[0]["kind"] == "metrics":
            points = [
                Metric(name, value, record["ms"], record["step"])
                for record in records
                for name, value in record["values"].items()
            ]
            _guarded(lambda: client.log_batch(run_id, metrics=points))
            return
        for record in records:
            _guarded(lambda record=record: getattr(self, f"_{record['kind']}")(client, run_id, record))

    def _make_run(self) -> TrackedRun:
        intent, client = self._intent, self._connect()
        note = read_note(intent.run_folder)
        known = intent.given_run_id or note.get("run_id")
        run = _active(client, known) if known else None
        if intent.given_run_id and run is None:
            raise UnknownRunError(
                f"MLFLOW_RUN_ID={intent.given_run_id} is not a run of {intent.tracking_uri}; unset it, or set "
                "MLFLOW_TRACKING_URI"
            )
        if run is None:
            experiment = find_experiment(client, intent.tracking_uri, intent.experiment_name)
            # A request to make it may have been carried out although its answer was lost.
            found = client.search_runs([experiment], filter_string=f"tags.{KEY_TAG} = '{intent.key}'", max_results=1)
            run = found[0] if found else client.create_run(
                experiment, start_time=intent.started_ms, run_name=intent.run_name, tags={KEY_TAG: intent.key}
            )  # fmt: skip
        write_note(intent, run.info.run_id, run.info.experiment_id)
        return self._tracked(run.info.run_id, run.info.experiment_id)

    def _await_run(self) -> TrackedRun:
        note = read_note(self._intent.run_folder)
        if note.get("attempt") != self._intent.attempt:
            raise TrackerAwayError("the run is not made yet")
        self._connect()
        return self._tracked(note["run_id"], note["experiment_id"])

    def _connect(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self._intent.tracking_uri)
        return self._client

    def _tracked(self, run_id: str, experiment_id: str) -> TrackedRun:
        return TrackedRun(tracking_uri=self._intent.tracking_uri, experiment_id=experiment_id, run_id=run_id)

    def _params(self, client: MlflowClient, run_id: str, record: Record) -> None:
        """Parameters cannot be changed in MLflow: what a later attempt sets differently becomes a tag."""
        flat, known = record["values"], client.get_run(run_id).data.params
        new = [Param(key, text) for key, text in flat.items() if key not in known]
        changed = [RunTag(f"resumed_with.{key}", text) for key, text in flat.items() if known.get(key, text) != text]
        client.log_batch(run_id, params=new, tags=changed)

    def _tags(self, client: MlflowClient, run_id: str, record: Record) -> None:
        client.log_batch(run_id, tags=[RunTag(key, text) for key, text in record["values"].items()])

    def _artifact(self, client: MlflowClient, run_id: str, record: Record) -> None:
        folder, _, name = record["name"].rpartition("/")
        with tempfile.TemporaryDirectory(prefix="artifact-") as scratch:
            path = Path(scratch) / name
            path.write_bytes(base64.b64decode(record["data"]))
            client.log_artifact(run_id, str(path), folder or None)

    def _status(self, client: MlflowClient, run_id: str, record: Record) -> None:
        if record["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, status=record["status"], end_time=record["ms"])

    def _register(self, client: MlflowClient, run_id: str, record: Record) -> None:
        with storage.local_folder(record["folder"]) as folder, self._patience():
            found = folder_fingerprint(folder) if folder.is_dir() else "gone"
            if found != record["fingerprint"]:
                raise RecordRefusedError(
                    f"{record['folder']} is no longer the model of step {record['step']} (fingerprint {found}, "
                    f"expected {record['fingerprint']}); export that step again to register it"
                )
            self.version = register_model(
                folder, record["name"], run_id, step=record["step"], tags=record["tags"],
                tracking_uri=self._intent.tracking_uri,
            )  # fmt: skip

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Within the block an answer may take as long as a store needs to put a file of gigabytes away."""
        before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(_UPLOAD_TIMEOUT_S, int(before)))
        self.uploading = True
        try:
            yield
        finally:
            self.uploading = False
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def read_note(run_folder: str) -> dict[str, Any]:
    """What is kept beside a run's outputs about its place in the tracker; empty where there is nothing."""
    try:
        return json.loads(storage.read_bytes(storage.join(run_folder, NOTE_NAME)))
    except FileNotFoundError:
        return {}


def write_note(intent: RunIntent, run_id: str | None, experiment_id: str | None) -> None:
    """Keep the run's key, and its id once it is known, beside the run's outputs."""
    note = {"key": intent.key, "run_id": run_id, "experiment_id": experiment_id}
    note |= {} if run_id is None else {"attempt": intent.attempt}
    storage.write_bytes(storage.join(intent.run_folder, NOTE_NAME), json.dumps(note).encode())


def header_of(intent: RunIntent) -> Record:
    """The first record of every spool file: what is needed to send it later, by whomever."""
    return {"kind": "run", **asdict(intent)}


def intent_of(header: Record) -> RunIntent:
    """The run that a spool file belongs to."""
    return RunIntent(**{name: value for name, value in header.items() if name != "kind"})


def _active(client: MlflowClient, run_id: str) -> Any:
    """The run of that id; None where the store was moved or emptied, or the run deleted since."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _guarded(call: Callable[[], T]) -> T:
    """Call the tracker; every failure becomes one of two: it is away, or it will never take this."""
    try:
        return call()
    except (TrackerAwayError, RecordRefusedError, UnknownRunError):
        raise
    except MlflowException as error:
        # An answer without MLflow's own words is that of a proxy whose server is away.
        refused = error.error_code in _NEVER and "API request to endpoint" not in str(error)
        raise (RecordRefusedError if refused else TrackerAwayError)(_first_line(error)) from error
    except requests.HTTPError as error:
        refused = error.response is not None and error.response.status_code in (400, 404, 405, 413)
        raise (RecordRefusedError if refused else TrackerAwayError)(_first_line(error)) from error
    except OSError as error:  # also what requests raises for a lost connection
        raise TrackerAwayError(_first_line(error)) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecordRefusedError(_first_line(error)) from error
    except Exception as error:  # the store's database, or the artifacts' object store, in their own words
        raise TrackerAwayError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
