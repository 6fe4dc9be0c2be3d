"""What a process says about its run: written to a spool on disk at once, sent to the tracker by a thread.

Nothing here waits for the tracker, and nothing raises because of it. The driver owns the run: it makes it in the
tracker, sends what processes that have ended left behind (also those of an attempt that was killed), and at the end
waits a bounded time for all of it. Any other process only sends its own file.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omni_platform import storage
from omni_platform.tracking.delivery import RunIntent, header_of, intent_of, read_note, write_note
from omni_platform.tracking.sender import Sender
from omni_platform.tracking.spool import SUFFIX, SpoolWriter, files_of, read_history
from omni_platform.tracking.store import TrackedRun, experiment_or_default, flatten, origin_tags, store_uri

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def plan_run(
    *,
    run_name: str,
    run_folder: str | Path,
    output_dir: str | Path,
    tracking_uri: str | None = None,
    experiment_name: str | None = None,
) -> RunIntent:
    """The run of that name, as an earlier attempt left it or a new one. Asks no tracker.

    `run_folder` (a path or URI) keeps the run's key and id between attempts. Where an argument is None:
    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, then sqlite below `output_dir` and "latentomni". MLFLOW_RUN_ID, if
    set, names the run to write into.
    """
    folder = storage.absolute(run_folder)
    note = read_note(folder)
    intent = RunIntent(
        tracking_uri=store_uri(tracking_uri, output_dir=output_dir),
        experiment_name=experiment_or_default(experiment_name),
        run_name=run_name,
        run_folder=folder,
        key=note.get("key") or uuid.uuid4().hex,
        attempt=uuid.uuid4().hex,
        given_run_id=os.environ.get("MLFLOW_RUN_ID"),
        started_ms=_now_ms(),
    )
    if "key" not in note:
        write_note(intent, note.get("run_id"), None)
    return intent


def spool_folder(intent: RunIntent) -> Path:
    """Where this machine keeps the run's spool: with the run where that is on a file system, else in TMPDIR."""
    if not storage.is_remote(intent.run_folder):
        return storage.local_path(intent.run_folder) / "tracking"
    digest = hashlib.sha256(intent.run_folder.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"omni-tracking-{os.getuid()}" / digest


@dataclass(frozen=True, kw_only=True)
class Settled:
    """How far the tracker got."""

    unsent: int
    """Records that it does not have."""
    spool: str
    """Where they wait: a path or URI."""


class Telemetry:
    """One process's way to its run. Use it as a context manager, or `close` it."""

    def __init__(
        self, intent: RunIntent, *, owner: bool = False, writes: bool = True, folder: Path | None = None
    ) -> None:
        """Starts the sending thread. `writes=False` only sends what others have left; `folder`: the spool, where it
        is not in its usual place."""
        self.intent, self.folder = intent, folder or spool_folder(intent)
        self._writer = self._make_writer() if writes else None
        self._sender = Sender(intent, self.folder, owner=owner, writer=self._writer)
        self._told_of_loss = False

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run(self) -> TrackedRun | None:
        """The run, once the tracker has answered."""
        return self._sender.delivery.run

    @property
    def version(self) -> int | None:
        """The version that `register` asked for, once it is there."""
        return self._sender.delivery.version

    def check(self, wait_s: float) -> None:
        """Wait for the first answer of the tracker, or for its first failure to answer, but no longer than `wait_s`.

        Raises ValueError where MLFLOW_RUN_ID names a run that does not exist.
        """
        self._sender.tried.wait(wait_s)
        if self._sender.problem is not None:
            raise self._sender.problem

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step."""
        self._write("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def params(self, config: Mapping[str, Any]) -> None:
        """A config, flattened. What an earlier attempt set differently becomes a tag `resumed_with.<key>`."""
        self._write("params", values=flatten(config))

    def tags(self, values: Mapping[str, str]) -> None:
        self._write("tags", values=dict(values))

    def artifact(self, name: str, data: bytes) -> None:
        """A small file of the run, kept in the spool itself."""
        self._write("artifact", name=name, data=base64.b64encode(data).decode())

    def status(self, status: Status) -> None:
        """What a person sees in the list of runs."""
        self._write("status", status=status)

    def register(self, name: str, folder: str, *, step: int, fingerprint: str, tags: Mapping[str, str]) -> None:
        """Ask for an exported model to be registered. It is read when it is sent, and must then still have the
        fingerprint."""
        self._write("register", name=name, folder=folder, step=step, fingerprint=fingerprint, tags=dict(tags))

    def describe(
        self,
        *,
        config: Mapping[str, Any],
        config_yaml: str,
        cards: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """What the run is made of: its config, the cards of its data (text by file name), where it comes from."""
        self.params(config)
        self.tags({**origin_tags(), **(tags or {})})
        self.artifact("config.yaml", config_yaml.encode())
        for name, text in (cards or {}).items():
            self.artifact(f"cards/{name}", text.encode())

    def history(self) -> dict[str, dict[int, float]]:
        """Metric -> value by step, of all attempts whose spool this machine has. Does not ask the tracker."""
        return read_history(self.folder)

    def settle(self, wait_s: float) -> Settled:
        """Wait until everything is sent, but no longer than `wait_s` without an answer of the tracker."""
        remote = storage.is_remote(self.intent.run_folder)
        unsent = self._sender.settle(wait_s)
        spool = storage.join(self.intent.run_folder, "tracking") if remote else str(self.folder)
        return Settled(unsent=unsent, spool=spool)

    def close(self) -> None:
        """Stop sending. What is not sent stays in the spool; where that is on this machine alone, a copy of it goes
        beside the run's outputs."""
        self._sender.stop()

    def _make_writer(self) -> SpoolWriter | None:
        try:
            return SpoolWriter(self.folder, header_of(self.intent))
        except OSError as error:
            print(f"tracking: {self.folder} cannot be written ({error}); nothing of this process is kept", flush=True)
            return None

    def _write(self, kind: str, **fields: Any) -> None:
        written = self._writer is not None and self._writer.append({"kind": kind, "ms": _now_ms(), **fields})
        if written and kind != "metrics":
            self._sender.wake()
        if not written and not self._told_of_loss:
            self._told_of_loss = True
            print(f"tracking: {self.folder} cannot be written; metrics and tags are lost", flush=True)


def replay(folder: str | Path, *, wait_s: float, tracking_uri: str | None = None) -> tuple[Settled, TrackedRun | None]:
    """Send what a spool still holds. `tracking_uri`: another store than the one it was written for.

    Raises ValueError for a folder without spool files.
    """
    with storage.local_folder(folder) as local:
        headers = [header for file in files_of(local) if (header := file.header())]
    if not headers:
        raise ValueError(f"{folder} holds no spool files (*{SUFFIX}); give the folder that the run has named")
    fields = headers[-1] | {"attempt": uuid.uuid4().hex}
    fields |= {} if tracking_uri is None else {"tracking_uri": store_uri(tracking_uri)}
    if storage.is_remote(folder) or not storage.is_remote(fields["run_folder"]):
        fields["run_folder"] = storage.parent(storage.absolute(folder))  # it may have been moved since
    here = None if storage.is_remote(folder) else storage.local_path(folder)
    with Telemetry(intent_of(fields), owner=True, writes=False, folder=here) as telemetry:
        return telemetry.settle(wait_s), telemetry.run


def _now_ms() -> int:
    return int(time.time() * 1000)
