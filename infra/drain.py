"""Lets a Ray cluster save before a pod goes: the preStop hook of every pod.

On the head, `--stop` asks each running job to stop (the Jobs API sends SIGTERM to its driver) and waits.
On a worker, `--leave` announces that this node is being taken away and when (reason PREEMPTION): a training run
saves at once and continues without it, Serve moves its replicas, and nothing new is placed here. The hook then holds
the pod until Ray has left the node, which it does once nothing runs there.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any, cast

import ray._raylet
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient
from ray.util import get_node_ip_address

# What `ray drain-node` uses itself; Ray has no public call for it, and no types.
_GCS_CLIENT, _AUTOSCALER, _GCS = cast(Any, ray._raylet).GcsClient, cast(Any, autoscaler_pb2), cast(Any, gcs_pb2)
POLL_S = 1.0
_RPC_TIMEOUT_S = 10.0


class LeaveError(RuntimeError):
    """The node could not be taken out of its cluster; the message says why."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Let a pod's cluster save before the pod goes.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stop", action="store_true", help="on the head: stop all jobs and wait for them")
    what.add_argument("--leave", action="store_true", help="on a worker: announce that this node goes, and wait")
    parser.add_argument("--deadline_s", type=float, default=240.0, help="the time that the node is announced with")
    parser.add_argument("--timeout_s", type=float, default=270.0, help="the longest wait")
    # KubeRay puts the head's name into every Ray container.
    head = os.environ.get("FQ_RAY_IP", "127.0.0.1")
    parser.add_argument("--address", default=f"http://{head}:8265", help="the Jobs API, for --stop")
    parser.add_argument("--gcs_address", default=os.environ.get("RAY_ADDRESS") or f"{head}:6379", help="for --leave")
    args = parser.parse_args(argv)
    if args.stop:
        left = stop_jobs(args.address, timeout_s=args.timeout_s)
        print(f"still running after {args.timeout_s:g} s: {', '.join(left)}" if left else "no job is running")
        return
    try:
        gone = leave(args.gcs_address, deadline_s=args.deadline_s, timeout_s=args.timeout_s)
    except LeaveError as error:
        raise SystemExit(f"cannot leave {args.gcs_address}: {error}") from None
    print("Ray has left this node" if gone else f"Ray is still on this node after {args.timeout_s:g} s")


def stop_jobs(address: str, *, timeout_s: float) -> list[str]:
    """Stops all jobs and waits for them; the submission ids of those that still run after timeout_s.

    A head that does not answer any more counts as drained: there is nothing left to wait for.
    """
    deadline = time.monotonic() + timeout_s
    try:
        client = JobSubmissionClient(address)
        running = _running(client)
        for job_id in running:
            client.stop_job(job_id)
        while running and time.monotonic() < deadline:
            time.sleep(POLL_S)
            running = _running(client)
    except (OSError, RuntimeError) as error:
        print(f"cannot drain {address}: {error}")
        return []
    return running


def leave(gcs_address: str, *, deadline_s: float, timeout_s: float) -> bool:
    """Announces that this node goes in `deadline_s`, and waits until Ray has left it; False where it still is there.

    A cluster that does not answer any more counts as left. Raises LeaveError where this node is not found in it, or the
    announcement is refused.
    """
    end = time.monotonic() + timeout_s
    try:
        client = _GCS_CLIENT(address=gcs_address)
        node_id = _own_node(_alive(client))
        reason = _AUTOSCALER.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = client.drain_node(node_id, reason, "the pod is stopping", int((time.time() + deadline_s) * 1e3))
        if not accepted:
            raise LeaveError(why)
        print(f"announced that node {node_id} goes in {deadline_s:g} s", flush=True)
        while node_id in _alive(client):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
    except (OSError, RayError) as error:
        print(f"the cluster at {gcs_address} does not answer: {error}")
    return True


def _alive(client: Any) -> dict[str, Any]:
    """Nodes of the cluster by id."""
    alive = _GCS.GcsNodeInfo.GcsNodeState.Value("ALIVE")
    nodes = client.get_all_node_info(timeout=_RPC_TIMEOUT_S).values()
    return {node.node_id.hex(): node for node in nodes if node.state == alive}


def _own_node(nodes: dict[str, Any]) -> str:
    """The node of this pod: by the pod's name, which KubeRay gives to Ray in this variable, else by address."""
    pod, address = os.environ.get("RAY_CLOUD_INSTANCE_ID"), get_node_ip_address()
    found = [key for key, node in nodes.items() if pod and node.instance_id == pod]
    found = found or [key for key, n in nodes.items() if n.node_manager_address == address and not n.is_head_node]
    if len(found) != 1:
        raise LeaveError(f"{len(found)} of its nodes are that of pod {pod} at {address}")
    return found[0]


def _running(client: JobSubmissionClient) -> list[str]:
    jobs = client.list_jobs()
    return [job.submission_id for job in jobs if job.submission_id and not job.status.is_terminal()]


if __name__ == "__main__":
    main()
