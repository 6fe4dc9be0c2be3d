"""Experiment tracking and the model registry: MLflow, reached the same way by every job.

What a run logs goes to a spool on disk (`spool`) through `telemetry`, and from there to MLflow by a background thread
(`sender`, `delivery`): a run never waits for its tracker. Reading a store is in `store`, models are in `registry`.
"""

from omni_platform.tracking.delivery import RunIntent, UnknownRunError
from omni_platform.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    ResolvedModel,
    find_model,
    log_evaluation,
    promote,
    register_model,
    resolve_model,
)
from omni_platform.tracking.store import TrackedRun, connect, metric_history, store_uri
from omni_platform.tracking.telemetry import Settled, Telemetry, plan_run, replay

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "ResolvedModel",
    "RunIntent",
    "Settled",
    "Telemetry",
    "TrackedRun",
    "UnknownRunError",
    "connect",
    "find_model",
    "log_evaluation",
    "metric_history",
    "plan_run",
    "promote",
    "register_model",
    "replay",
    "resolve_model",
    "store_uri",
]
