"""A node that is taken away with notice, and one that comes: the run saves, and goes on with the workers it has."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from toy_runs import config
from toy_task import ToyRows, ToyTask

from omni_platform.tracking import TrackedRun, metric_history
from omni_platform.train.config import TrainConfig
from omni_platform.train.launch import fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STEPS = 60
ELASTIC: dict[str, Any] = {"num_workers": (1, 2), "elastic_resize_monitor_interval_s": 2.0}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with one CPU, to which nodes with one CPU each come and go."""
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        ray.init(address=made.address)
        yield made
        ray.shutdown()
        made.shutdown()


class SlowRows(ToyRows):
    """Rows that come slowly enough for nodes to come and go while they are read."""

    def row(self, index: int) -> Any:
        time.sleep(0.05)
        return super().row(index)


def settings(folder: Path, name: str, tracking_uri: str) -> TrainConfig:
    return TrainConfig(
        **config(folder, name, zero_stage=2, task={"dropout": 0.0}, max_steps=STEPS, save_steps=20),
        tracking_uri=tracking_uri,
    )


def losses(summary: dict[str, Any], tracking_uri: str) -> dict[int, float]:
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=summary["mlflow"]["run_id"])
    return metric_history(run, "train/loss")


def test_a_node_taken_away_with_notice_costs_no_step_and_changes_no_loss(
    cluster: Cluster, tracking_uri: str, tmp_path: Path
) -> None:
    leaving = cluster.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "pod-of-the-node"})
    cluster.wait_for_nodes()
    elastic = replace(settings(tmp_path, "preempted", tracking_uri), **ELASTIC)
    folder = tmp_path / "preempted" / "checkpoints" / "preempted"
    drain = threading.Thread(target=take_away, args=(cluster, leaving, folder), daemon=True)
    drain.start()
    summary = fit(elastic, build_task=ToyTask, open_rows=functools.partial(SlowRows, 50))
    drain.join(timeout=60)
    assert not drain.is_alive()

    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=summary["mlflow"]["run_id"])
    noticed = int(run.client.get_run(run.run_id).data.tags["preempted"].removeprefix("saved at step "))
    assert 0 < noticed < STEPS
    assert summary["steps"] == STEPS
    steady = replace(settings(tmp_path, "steady", tracking_uri), num_workers=1, gradient_accumulation_steps=4)
    reference = fit(steady, build_task=ToyTask, open_rows=functools.partial(ToyRows, 50))
    assert losses(summary, tracking_uri) == pytest.approx(losses(reference, tracking_uri), rel=1e-4)


def test_a_node_that_comes_is_used(
    cluster: Cluster, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elastic = replace(settings(tmp_path, "growing", tracking_uri), **ELASTIC)
    folder = tmp_path / "growing" / "checkpoints" / "growing"
    with ThreadPoolExecutor(1) as pool:  # a node can be added from the main thread alone
        run = pool.submit(fit, elastic, build_task=ToyTask, open_rows=functools.partial(SlowRows, 50))
        wait_for_step(folder, 20)
        cluster.add_node(num_cpus=1)
        assert run.result(timeout=200)["steps"] == STEPS
    assert "which 1 workers saved" in capfd.readouterr().out


def wait_for_step(folder: Path, step: int) -> None:
    for _ in range(1200):
        if (folder / f"checkpoint-{step:08d}" / "COMPLETE").exists():
            return
        time.sleep(0.1)
    raise TimeoutError(f"no checkpoint of step {step}")


def take_away(cluster: Cluster, node: Any, folder: Path) -> None:
    """Stop a node as Kubernetes stops a worker's pod: run the hook of the manifest, then end its processes."""
    wait_for_step(folder, 20)
    times = {"240": "8", "270": "60"}
    command = [sys.executable, str(ROOT / "infra" / "drain.py"), *(times.get(w, w) for w in hook_of_the_workers()[2:])]
    pod = {"RAY_CLOUD_INSTANCE_ID": "pod-of-the-node", "RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, env={**os.environ, **pod}, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert f"announced that node {node.node_id} goes in 8 s" in done.stdout
    cluster.remove_node(node, allow_graceful=False)


def hook_of_the_workers() -> list[str]:
    """The preStop command of the training job's workers, as rendered."""
    render = [sys.executable, "infra/render.py", "gpu", "--engine", "own"]
    text = subprocess.run(render, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (job,) = [item for item in yaml.safe_load_all(text) if item["metadata"]["name"] == "omni-train"]
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    return pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
