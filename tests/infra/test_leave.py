"""The preStop hook of a worker's pod in a real cluster of two nodes: it is announced, and held until it is idle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray._private.state import state
from ray.cluster_utils import Cluster

POD = "omni-train-worker-1"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        ray.init(address=made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@ray.remote(num_cpus=0, resources={"worker": 1})
class Work:
    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()


def hooks(ray_pods: dict[str, Any]) -> dict[str, list[str]]:
    """The command of every worker group of every cluster."""
    pods = {name: pod for name, pod in ray_pods.items() if not name.endswith(" head")}
    return {name: pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] for name, pod in pods.items()}


def test_every_worker_group_leaves_its_cluster_before_its_pod_is_killed(ray_pods, of_kind):
    found = hooks(ray_pods)
    assert len(found) == len(of_kind("RayJob")) + len(of_kind("RayService"))
    for name, command in found.items():
        assert command[:3] == ["python", "/home/ray/latentomni/infra/drain.py", "--leave"], name
        deadline_s, timeout_s = (int(command[command.index(word) + 1]) for word in ("--deadline_s", "--timeout_s"))
        assert 0 < deadline_s < timeout_s < ray_pods[name]["terminationGracePeriodSeconds"], name


def test_the_hook_drains_the_node_of_its_pod_and_holds_it_until_nothing_runs_there(cluster, ray_pods, root):
    node = cluster.add_node(num_cpus=1, resources={"worker": 1}, env_vars={"RAY_CLOUD_INSTANCE_ID": POD})
    cluster.wait_for_nodes()
    work = Work.remote()
    assert ray.get(work.ready.remote()) == node.node_id
    (command, *others) = hooks(ray_pods).values()
    assert all(other == command for other in others)
    assert state.get_draining_nodes() == {}

    environment = {**os.environ, "RAY_CLOUD_INSTANCE_ID": POD, "RAY_ADDRESS": cluster.address}
    script = str(root / "infra" / "drain.py")
    began = time.time()
    with subprocess.Popen([sys.executable, script, *command[2:]], env=environment, stdout=subprocess.PIPE) as hook:
        assert hook.stdout is not None
        announced = hook.stdout.readline().decode()
        assert announced == f"announced that node {node.node_id} goes in 240 s\n"
        (deadline_ms,) = [value for key, value in state.get_draining_nodes().items() if key == node.node_id]
        assert began + 240 <= deadline_ms / 1000 <= time.time() + 240
        time.sleep(3)
        assert hook.poll() is None  # the work is still there
        del work
        assert hook.stdout.read().decode() == "Ray has left this node\n"
        assert hook.wait(timeout=60) == 0
    assert node.node_id not in {n["NodeID"] for n in ray.nodes() if n["Alive"]}


def test_a_pod_that_is_in_no_cluster_says_so(cluster, drain, monkeypatch):
    """Both nodes of this test have one address, and neither has this name."""
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "another")
    with pytest.raises(drain.LeaveError, match="2 of its nodes are that of pod another"):
        drain.leave(cluster.address, deadline_s=1, timeout_s=1)
