"""Send what a run could not: python jobs/replay_tracking.py spool=outputs/run/checkpoints/run/tracking

A run whose tracker was away to its end names its spool. What is sent already is not sent again; ends with 1 where the
tracker does not answer this time either.
"""

from __future__ import annotations

from dataclasses import dataclass

from omni_platform import tracking
from omni_platform.config import parse_args


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Which spool, and how long to try."""

    spool: str
    """The folder that the run has named (a path or s3://)."""
    tracking_uri: str | None = None
    """Another tracker than the one the run was meant for."""
    wait_s: float = 60.0
    """How long to wait for a tracker that does not answer."""


CONFIG = ReplayConfig


def main() -> None:
    config = parse_args(ReplayConfig)
    try:
        settled, run = tracking.replay(config.spool, wait_s=config.wait_s, tracking_uri=config.tracking_uri)
    except ValueError as error:
        raise SystemExit(f"replay: {error}") from None
    if settled.unsent:
        raise SystemExit(f"replay: {settled.unsent} records are still in {settled.spool}")
    print(f"replay: all of {config.spool} is in run {run.run_id if run else '(none)'}")


if __name__ == "__main__":
    main()
