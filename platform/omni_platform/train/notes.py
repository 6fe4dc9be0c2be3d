"""What a run tells while it goes: figures to the tracker, progress to the person who waits."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from omni_platform.tracking import MetricWriter, TrackedRun
from omni_platform.train.config import TrainConfig
from omni_platform.train.figures import StepFigures, Window
from omni_platform.train.plan import Plan
from omni_platform.train.progress import ProgressDisplay
from omni_platform.train.state import Progress


class Notes:
    """Worker 0 tells; the others only keep the same sums, which belong to their progress."""

    def __init__(
        self,
        run: TrackedRun,
        config: TrainConfig,
        plan: Plan,
        progress: Progress,
        weights: Mapping[str, float],
        *,
        on_terminal: bool,
    ) -> None:
        self._config, self._plan, self._progress, self._weights = config, plan, progress, weights
        self._window = Window(progress.window)
        self._writer: MetricWriter | None = None
        self._display: ProgressDisplay | None = None
        if dist.get_rank() == 0:
            self._writer = MetricWriter(run)
            self._display = ProgressDisplay(
                config.run_name,
                total_steps=plan.total_steps,
                first_step=progress.step,
                on_terminal=on_terminal,
            )

    def take(self, figures: StepFigures, rate: float, grad_norm: float | None) -> None:
        """Add a step to the window; every `logging_steps` steps and after the last, note the means.

        Steps that changed nothing count for none.
        """
        progress = self._progress
        norm = {} if grad_norm is None else {"grad_norm": grad_norm}
        if not figures.bad_rows:
            self._window.add(figures.terms | norm, figures.counts, figures.data_wait_s)
        progress.epoch = progress.step / self._plan.steps_per_epoch
        if self._display is not None:
            self._display.step()
        due = progress.step % self._config.logging_steps == 0 or progress.step == self._plan.total_steps
        if due and (means := self._window.close(self._weights)):
            progress.last = means
            progress.first = progress.first or means
            self._tell(progress.step, {**means, "learning_rate": rate, "epoch": progress.epoch})
        progress.window = self._window.sums

    def flush(self) -> None:
        """Send what waits to be sent."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self.flush()
        if self._display is not None:
            self._display.close()

    def _tell(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is not None and self._display is not None:
            self._writer.add(step, {f"train/{name}": value for name, value in figures.items()})
            self._display.note(step, figures)
