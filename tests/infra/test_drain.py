"""The preStop hook against a real Ray head: a job that takes its time to save gets it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# The job says when it listens for SIGTERM, and needs longer to save than Ray's own 3 s of patience.
JOB = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(4)
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "listening").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray head with a Jobs API on loopback, started with the manifests' way of stopping a job."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = ray.init(
        address="local", num_cpus=1, include_dashboard=True, dashboard_port=port, _node_ip_address="127.0.0.1"
    )
    yield f"http://{context.address_info['webui_url']}"
    ray.shutdown()
    patch.undo()


def _submit(address: str, folder: Path) -> str:
    from ray.job_submission import JobSubmissionClient

    script = folder / "job.py"
    script.write_text(JOB)
    client = JobSubmissionClient(address)
    job_id = client.submit_job(entrypoint=f"{sys.executable} {script} {folder}")
    deadline = time.monotonic() + 120
    while not (folder / "listening").exists():
        assert time.monotonic() < deadline, client.get_job_logs(job_id)
        time.sleep(0.1)
    return job_id


@pytest.mark.slow
def test_a_job_saves_before_the_pod_goes(address, drain, tmp_path):
    job_id = _submit(address, tmp_path)
    assert not (tmp_path / "saved").exists()
    assert drain.stop_jobs(address, timeout_s=0) == [job_id]  # asked to stop, and not done yet
    assert drain.stop_jobs(address, timeout_s=120) == []
    assert (tmp_path / "saved").exists()


def test_a_head_that_is_gone_counts_as_drained(drain, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert drain.stop_jobs(f"http://127.0.0.1:{port}", timeout_s=60) == []
    assert "cannot drain" in capsys.readouterr().out
