"""Lets the jobs of a Ray cluster finish saving before a pod goes: the preStop hook of every pod.

On the head, `--stop` asks each running job to stop (the Jobs API sends SIGTERM to its driver) and waits.
On a worker, without `--stop`, it only holds on while the head drains, so that a saving job keeps its workers.
A worker that leaves alone holds on for the whole timeout at most; the job then goes on without it.
"""

from __future__ import annotations

import argparse
import os
import time

from ray.job_submission import JobSubmissionClient

POLL_S = 1.0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Wait until this cluster runs no job.")
    parser.add_argument("--stop", action="store_true", help="ask them to stop first")
    parser.add_argument("--timeout_s", type=float, default=270.0)
    # KubeRay puts the head's name into every Ray container.
    parser.add_argument("--address", default=f"http://{os.environ.get('FQ_RAY_IP', '127.0.0.1')}:8265")
    args = parser.parse_args(argv)
    left = drain(args.address, stop=args.stop, timeout_s=args.timeout_s)
    print(f"still running after {args.timeout_s:g} s: {', '.join(left)}" if left else "no job is running")


def drain(address: str, *, stop: bool, timeout_s: float) -> list[str]:
    """Waits until no job is running; the submission ids of those that still are after timeout_s.

    A head that does not answer any more counts as drained: there is nothing left to wait for.
    """
    deadline = time.monotonic() + timeout_s
    try:
        client = JobSubmissionClient(address)
        running = _running(client)
        for job_id in running if stop else []:
            client.stop_job(job_id)
        while running and time.monotonic() < deadline:
            time.sleep(POLL_S)
            running = _running(client)
    except (OSError, RuntimeError) as error:
        print(f"cannot drain {address}: {error}")
        return []
    return running


def _running(client: JobSubmissionClient) -> list[str]:
    jobs = client.list_jobs()
    return [job.submission_id for job in jobs if job.submission_id and not job.status.is_terminal()]


if __name__ == "__main__":
    main()
