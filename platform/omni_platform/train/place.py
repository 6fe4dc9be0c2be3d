"""Where one worker of a run is, and how it speaks to what started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from omni_platform.train.checkpoint import Storage


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a worker is told by whatever started it. The process group must be up."""

    device: torch.device
    storage: Storage
    """The run's folder of checkpoints."""
    leads_node: bool
    """Whether this is the first worker of its machine."""
    stop_requested: Callable[[], bool]
    """Asked once per step, must not wait; one worker that says yes stops all."""
    report: Callable[[dict[str, float], str], None]
    """Told of every complete checkpoint: the last figures and the path."""
    preempted: Callable[[], bool] = lambda: False
    """Asked once per step, must not wait: whether a node of this run will soon be taken away."""
    may_write: Callable[[], bool] = lambda: True
    """Asked on worker 0 before a checkpoint is published: whether the run's folder is still this run's."""
    evaluate: Callable[[int], None] = lambda step: None
    """Told on worker 0 of every complete checkpoint that is to be evaluated; must not wait."""
