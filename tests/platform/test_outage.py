"""The tracker goes away and comes back: what was logged is in the run afterwards, once. With a real MLflow server."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mlflow_server import MlflowServer

from omni_platform.artifacts import folder_fingerprint
from omni_platform.tracking import Telemetry, TrackedRun, find_model, plan_run, replay


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch, server: MlflowServer) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def start(uri: str, folder: Path) -> Telemetry:
    intent = plan_run(run_name="r", run_folder=folder / "r", output_dir=folder, tracking_uri=uri)
    telemetry = Telemetry(intent, owner=True)
    telemetry.status("RUNNING")
    return telemetry


def replay_job(spool: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`jobs/replay_tracking.py`, as the run has told to call it."""
    job = str(Path(__file__).parents[2] / "jobs" / "replay_tracking.py")
    command = [sys.executable, job, f"spool={spool}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def points(run: TrackedRun, name: str) -> list[tuple[int, float]]:
    """Every point that the store has, as often as it has it."""
    return sorted((point.step, point.value) for point in run.client.get_metric_history(run.run_id, name))


def test_what_is_logged_while_the_server_is_away_is_there_once_when_it_is_back(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    with start(server.uri, tmp_path) as telemetry:
        telemetry.metrics(1, {"loss": 0.5})
        assert telemetry.settle(60.0).unsent == 0
        server.kill()
        began_s = time.monotonic()
        for step in range(2, 402):
            telemetry.metrics(step, {"loss": 1 / step, "grad_norm": float(step)})
            telemetry.tags({f"skipped.{step}": "row-1"})
        assert time.monotonic() - began_s < 5.0  # 800 calls; one that waits for the server takes longer than all
        settled = telemetry.settle(1.0)
        assert settled.unsent == 800
        assert settled.spool == str(tmp_path / "r" / "tracking")
        server.start()
        assert telemetry.settle(60.0).unsent == 0
        run = telemetry.run
    assert run is not None
    assert points(run, "loss") == [(1, 0.5), *((step, 1 / step) for step in range(2, 402))]
    assert points(run, "grad_norm") == [(step, float(step)) for step in range(2, 402)]
    tags = run.client.get_run(run.run_id).data.tags
    assert sum(key.startswith("skipped.") for key in tags) == 400
    said = capsys.readouterr().out
    assert said.count("does not answer") == 1
    assert said.count("answers again") == 1


def test_a_server_that_is_away_from_start_to_end_costs_the_wait_that_was_asked_for_and_loses_nothing(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.kill()
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.json").write_text("{}")
    began_s = time.monotonic()
    with start(server.uri, tmp_path) as telemetry:
        telemetry.check(wait_s=5.0)
        telemetry.describe(config={"learning_rate": 0.1}, config_yaml="learning_rate: 0.1\n")
        telemetry.metrics(1, {"loss": 0.5})
        telemetry.register(
            "late", str(export), step=1, fingerprint=folder_fingerprint(export), tags={"chosen_by": "last step"}
        )
        telemetry.status("FINISHED")
        settled = telemetry.settle(1.0)
        assert (settled.unsent, telemetry.run, telemetry.version) == (7, None, None)
    assert time.monotonic() - began_s < 20.0
    done = replay_job(settled.spool, "wait_s=1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"replay: 7 records are still in {settled.spool}"
    server.start()
    done = replay_job(settled.spool)
    assert done.returncode == 0, done.stderr
    after, run = replay(settled.spool, wait_s=60.0)  # once more changes nothing
    assert after.unsent == 0
    assert run is not None
    assert done.stdout.splitlines()[-1] == f"replay: all of {settled.spool} is in run {run.run_id}"
    found = run.client.get_run(run.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "r")
    assert found.data.params == {"learning_rate": "0.1"}
    assert points(run, "loss") == [(1, 0.5)]
    assert [a.path for a in run.client.list_artifacts(run.run_id)] == ["config.yaml", "model-1"]
    model = find_model("models:/late@candidate", tracking_uri=server.uri)
    assert (model.version, model.tags["step"], model.tags["chosen_by"]) == (1, "1", "last step")
    assert (model.folder / "model.json").read_text() == "{}"
    # The run itself continues where the replay has put it.
    with start(server.uri, tmp_path) as again:
        assert again.settle(60.0).unsent == 0
        assert again.run == run


def test_a_model_that_was_replaced_before_it_could_be_registered_is_not_taken_for_the_old_one(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.json").write_text("another run's")
    with start(server.uri, tmp_path) as telemetry:
        telemetry.register("replaced", str(export), step=1, fingerprint="0123456789abcdef", tags={})
        assert telemetry.settle(60.0).unsent == 0
        assert telemetry.version is None
    assert "export is no longer the model of step 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not in the registry"):
        find_model("models:/replaced@candidate", tracking_uri=server.uri)


def test_what_a_killed_process_has_left_is_sent_by_the_next_attempt(server: MlflowServer, tmp_path: Path) -> None:
    """The process is killed while the server is away, in the middle of a line."""
    server.kill()
    code = (
        "import os, signal, sys; from omni_platform.tracking import Telemetry, plan_run\n"
        "uri, folder = sys.argv[1:]\n"
        "plan = plan_run(run_name='r', run_folder=f'{folder}/r', output_dir=folder, tracking_uri=uri)\n"
        "telemetry = Telemetry(plan, owner=True)\n"
        "for step in range(1, 51): telemetry.metrics(step, {'loss': 1 / step})\n"
        'os.write(telemetry._writer._descriptor, b\'{"kind": "metrics", "step\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, server.uri, str(tmp_path)], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    server.start()
    with start(server.uri, tmp_path) as telemetry:
        telemetry.metrics(51, {"loss": 1 / 51})
        assert telemetry.settle(60.0).unsent == 0
        run = telemetry.run
    assert run is not None
    assert points(run, "loss") == [(step, 1 / step) for step in range(1, 52)]


def test_a_server_that_accepts_and_says_nothing_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began_s = time.monotonic()
        with start(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path) as telemetry:
            telemetry.check(wait_s=1.0)
            telemetry.metrics(1, {"loss": 0.5})
            assert telemetry.settle(1.0).unsent == 2
    assert time.monotonic() - began_s < 10.0


class ForgetfulProxy(BaseHTTPRequestHandler):
    """Passes every request on, but loses the first answer to each: the client cannot know that it was carried out."""

    target = ""
    seen: set[str] = set()  # noqa: RUF012

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection(self.target, timeout=60)
        upstream.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"})
        answer = upstream.getresponse()
        data = answer.read()
        fields = sorted(json.loads(body)) if body and "/mlflow/" in self.path else []
        what = (
            f"{self.command} {self.path} {' '.join(fields)}"  # a batch of metrics is another request than one of tags
        )
        if what not in self.seen:
            self.seen.add(what)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name in ("Content-Type",):
            self.send_header(name, answer.headers.get(name) or "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_any

    def log_message(self, *_: object) -> None:
        pass


def test_a_request_whose_answer_was_lost_is_repeated_without_a_second_effect(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.start()
    ForgetfulProxy.target, ForgetfulProxy.seen = urlsplit(server.uri).netloc, set()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), ForgetfulProxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.json").write_text("{}")
    values = {"loss": 1 / 3, "odd": float("nan"), "large": float("inf")}
    try:
        with start(f"http://127.0.0.1:{proxy.server_address[1]}", tmp_path) as telemetry:
            telemetry.describe(config={"learning_rate": 0.1}, config_yaml="learning_rate: 0.1\n")
            for step in (1, 2, 3):
                telemetry.metrics(step, values)
            telemetry.register("lost", str(export), step=3, fingerprint=folder_fingerprint(export), tags={})
            telemetry.status("FINISHED")
            assert telemetry.settle(60.0).unsent == 0
            assert telemetry.version == 1
            run = telemetry.run
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert run is not None
    direct = TrackedRun(tracking_uri=server.uri, experiment_id=run.experiment_id, run_id=run.run_id)
    lost = {what.rpartition("/")[2] for what in ForgetfulProxy.seen}
    assert {"log-batch metrics run_id", "log-batch params run_id", "log-batch run_id tags"} <= lost
    assert {"create", "update", "alias", "config.yaml", "model.json"} <= {what.split()[0] for what in lost}
    assert points(direct, "loss") == [(step, 1 / 3) for step in (1, 2, 3)]
    for name in ("odd", "large"):
        assert [step for step, _ in points(direct, name)] == [1, 2, 3]
    assert len(direct.client.search_runs([run.experiment_id], f"tags.run_key = '{telemetry.intent.key}'")) == 1
    assert [v.version for v in direct.client.search_model_versions("name = 'lost'")] in (["1"], [1])
    assert direct.client.get_run(run.run_id).info.status == "FINISHED"
