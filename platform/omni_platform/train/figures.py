"""The figures of a step: reduced over workers in one small exchange, then averaged between two notes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What one worker has to tell the others after a step."""

    data_wait_s: float
    """Time spent waiting for a batch."""
    stop: bool = False
    """It has seen a request to stop."""
    preempted: bool = False
    """It has heard that a node of this run will be taken away."""
    uploaded: bool = False
    """Its share of a checkpoint on its way has arrived."""


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One optimizer step over all workers."""

    terms: dict[str, float]
    """Means over micro-batches and workers: `loss` and the named raw terms."""
    counts: dict[str, float]
    """Sums over micro-batches and workers, such as `tokens`."""
    data_wait_s: float
    """Mean over workers of the time spent waiting for a batch."""
    stop: bool
    """Whether any worker has seen a request to stop."""
    preempted: bool
    """Whether any worker has heard of a preemption."""
    uploaded: bool
    """Whether every worker's share of a checkpoint has arrived."""
    bad_rows: tuple[str, ...] = ()
    """Rows of a step that changed no weight, because its loss or gradient was not finite."""


def reduce_step(micro_batches: list[dict[str, torch.Tensor]], signals: Signals, *, device: torch.device) -> StepFigures:
    """One step's figures over all workers; every worker calls it and gets the same answer.

    Floating outputs are terms (averaged), integer ones counts (summed). ValueError where the names differ
    between micro-batches: the exchange needs the same ones in every worker.
    """
    names = sorted(micro_batches[0])
    if any(sorted(outputs) != names for outputs in micro_batches):
        raise ValueError(f"the task returned {names} for one batch and other names for another; return them all")
    if "tokens" in names and micro_batches[0]["tokens"].is_floating_point():
        raise ValueError("the task's `tokens` is a count: return it as an integer tensor")
    outputs = [torch.stack([o[n].detach().double() for n in names]) for o in micro_batches]
    own = torch.stack(outputs).sum(0).to(device)
    told = (signals.data_wait_s, signals.stop, signals.preempted, signals.uploaded)
    total = torch.cat([own, torch.tensor([float(x) for x in told], dtype=torch.float64, device=device)])
    dist.all_reduce(total)
    *values, wait_s, stops, preempted, uploaded = total.tolist()
    share = dist.get_world_size() * len(micro_batches)
    is_term = {n: micro_batches[0][n].is_floating_point() for n in names}
    return StepFigures(
        terms={n: v / share for n, v in zip(names, values, strict=True) if is_term[n]},
        counts={n: v for n, v in zip(names, values, strict=True) if not is_term[n]},
        data_wait_s=wait_s / dist.get_world_size(),
        stop=stops > 0,
        preempted=preempted > 0,
        uploaded=uploaded == dist.get_world_size(),
    )


class Window:
    """Sums of step figures since the last note, with the time they took."""

    def __init__(self, sums: Mapping[str, float]) -> None:
        """`sums` is what an earlier attempt had gathered (`Window.sums`); empty at the start of a run."""
        self._start(sums)

    def _start(self, sums: Mapping[str, float]) -> None:
        self._sums = dict(sums)
        self._since_s = time.perf_counter()
        self._tokens = self._positions = self._wait_s = 0.0

    @property
    def sums(self) -> dict[str, float]:
        """What a checkpoint keeps, so that a resumed run notes the same means. Times are not kept."""
        return dict(self._sums)

    def add(self, terms: Mapping[str, float], counts: Mapping[str, float], data_wait_s: float) -> None:
        for name, value in {**terms, "steps": 1.0}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._tokens += counts.get("tokens", 0.0)
        self._positions += counts.get("positions", 0.0)
        self._wait_s += data_wait_s

    def close(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The means since the last note, and a new start; nothing where no step was added.

        `share/<term>` is the part of the loss that a weighted term makes up.
        """
        steps = self._sums.pop("steps", 0.0)
        if not steps:
            return {}
        means = {name: value / steps for name, value in self._sums.items()}
        shares = {
            f"share/{name}": weight * means[name] / means["loss"]
            for name, weight in weights.items()
            if name in means and means["loss"]
        }
        seconds = max(time.perf_counter() - self._since_s, 1e-9)
        speed = {
            "tokens_per_s": self._tokens / seconds,
            "data_wait_share": min(1.0, self._wait_s / seconds),
        }
        if self._positions:
            speed["padding_share"] = 1.0 - self._tokens / self._positions
        self._start({})
        return {**means, **shares, **speed}
