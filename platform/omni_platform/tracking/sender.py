"""The thread that takes a run's spool to the tracker, again and again until the tracker has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from omni_platform import storage
from omni_platform.tracking.delivery import (
    Delivery,
    RecordRefusedError,
    RunIntent,
    TrackerAwayError,
    UnknownRunError,
)
from omni_platform.tracking.spool import SUFFIX, Record, SpoolFile, SpoolWriter, files_of

_INTERVAL_S, _LONGEST_INTERVAL_S, _SETTLING_INTERVAL_S = 2.0, 15.0, 0.5
_MAX_METRICS = 800  # of the 1,000 that MLflow takes at once


class Sender:
    """Sends one process's file, or, for the owner of the run, every file whose process has ended as well."""

    def __init__(self, intent: RunIntent, folder: Path, *, owner: bool, writer: SpoolWriter | None) -> None:
        self.delivery = Delivery(intent, owner=owner)
        self.tried = threading.Event()
        """Set once the tracker has answered, or failed to, for the first time."""
        self.problem: UnknownRunError | None = None
        """Why nothing of this run can ever be sent."""
        self._intent, self._folder, self._owner, self._writer = intent, folder, owner, writer
        self._remote = storage.is_remote(intent.run_folder)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._settling, self._away, self._fetched = False, False, not self._remote
        self._progress_s = time.monotonic()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something that should not wait for the next pass."""
        self._wake.set()

    def settle(self, wait_s: float) -> int:
        """Wait until all is sent, but no longer than `wait_s` without an answer; returns how many records are left."""
        self._progress_s = time.monotonic()
        self._fetched = not (self._owner and self._remote)
        self._settling = True
        self._wake.set()
        while (unsent := sum(file.unsent() for file in self._files())) or not self._ready:
            silent_s = time.monotonic() - self._progress_s
            # A model of gigabytes is an answer that takes its time; each of its requests has a time-out.
            if self.problem is not None or (silent_s > wait_s and not self.delivery.uploading):
                break
            time.sleep(0.1)
        self._settling = False
        return unsent

    @property
    def _ready(self) -> bool:
        return self._fetched and (self.delivery.run is not None or not self._owner)

    def stop(self) -> None:
        """End the thread, let go of the file, and copy what is on this machine alone beside the run's outputs."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=1.0)  # it may be in a request; as a daemon it holds nobody up
        if self._writer is not None:
            self._writer.close()
        if self._remote:
            self._quietly(self._upload)

    def _send_all(self) -> None:
        """What there is, every two seconds; less often while the tracker does not answer."""
        pause_s = _INTERVAL_S
        while not self._closing.is_set():
            try:
                self._send_pass()
                if self._away and self._owner:
                    print(f"tracking: {self._intent.tracking_uri} answers again", flush=True)
                self._away, pause_s = False, _INTERVAL_S
            except TrackerAwayError as error:
                self._say_away(error)
                pause_s = min(2 * pause_s, _LONGEST_INTERVAL_S)
            except UnknownRunError as error:
                self.problem = error
                self._say_once("run", f"tracking: {error}")
            except Exception as error:  # the thread must live: what it cannot do now it may be able to do later
                self._say_once("thread", f"tracking: {type(error).__name__}: {error}; trying again")
            self.tried.set()
            self._pause(pause_s)

    def _pause(self, pause_s: float) -> None:
        """Until the next pass is due. What comes in meanwhile ends the pause, but not while nobody answers."""
        began_s = time.monotonic()
        while not self._closing.is_set():
            left_s = began_s + (_SETTLING_INTERVAL_S if self._settling else pause_s) - time.monotonic()
            if left_s <= 0 or (self._wake.is_set() and not self._away):
                break
            self._wake.clear()
            self._wake.wait(left_s)
        self._wake.clear()

    def _send_pass(self) -> None:
        if self._writer is not None:
            self._writer.sync()
        if not self._fetched:
            self._quietly(self._fetch)
            self._fetched = True
        if self.delivery.run is None:
            self.delivery.open()
            self._progress_s = time.monotonic()
        for file in self._files():
            if self._writer is not None and file == self._writer.file:
                self._send_file(file)
                continue
            with file.held() as alone:
                if alone:
                    self._send_file(file)

    def _files(self) -> list[SpoolFile]:
        if self._owner:
            return files_of(self._folder)
        return [] if self._writer is None else [self._writer.file]

    def _send_file(self, file: SpoolFile) -> None:
        batch: list[Record] = []
        end = file.sent
        for record, record_end in file.records(end):
            full = sum(len(one["values"]) for one in batch) >= _MAX_METRICS
            if batch and (full or record["kind"] != "metrics"):
                self._send(file, batch, end)
                batch = []
            end = record_end
            if record["kind"] == "metrics":
                batch.append(record)
            elif record["kind"] != "run":
                self._send(file, [record], end)
        if batch:
            self._send(file, batch, end)
        file.mark_sent(end)

    def _send(self, file: SpoolFile, records: list[Record], end: int) -> None:
        """Send records of one kind; those that the tracker will never take are put aside, one by one."""
        try:
            self.delivery.apply(records)
        except RecordRefusedError as error:
            if len(records) > 1 or len(records[0].get("values", ())) > 1:
                for part in _parts(records):
                    self._send(file, [part], file.sent)
            else:
                file.refuse(records[0], str(error))
                self._say_once(str(error), f"tracking: {records[0]['kind']} refused by the tracker: {error}")
        self._progress_s = time.monotonic()
        file.mark_sent(end)

    def _fetch(self) -> None:
        """Copy what other machines have left beside the run's outputs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for uri in storage.list_files(storage.join(self._intent.run_folder, "tracking")):
            target = self._folder / uri.rpartition("/")[2]
            if target.suffix == ".sent":
                SpoolFile(target.with_suffix(SUFFIX)).mark_sent(int(storage.read_bytes(uri)))
            elif target.suffix == SUFFIX and not target.exists():
                storage.write_bytes(str(target), storage.read_bytes(uri))

    def _upload(self) -> None:
        for file in self._files():
            for path in (file.path, file.marker):
                if path.exists():
                    uri = storage.join(self._intent.run_folder, "tracking", path.name)
                    storage.write_bytes(uri, path.read_bytes())

    def _quietly(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # an object store in its own words
            self._say_once(call.__name__, f"tracking: {self._intent.run_folder} cannot be reached ({error})")

    def _say_away(self, error: TrackerAwayError) -> None:
        if not self._away and self._owner:
            print(
                f"tracking: {self._intent.tracking_uri} does not answer ({error}); the run continues, what it logs "
                f"waits in {self._folder}",
                flush=True,
            )
        self._away = True

    def _say_once(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            print(text, flush=True)


def _parts(records: list[Record]) -> list[Record]:
    """The records with one value each."""
    return [{**record, "values": {name: value}} for record in records for name, value in record["values"].items()]
