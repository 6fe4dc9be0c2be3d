"""What a run reports on its way: metrics to its spool, progress to the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist

from omni_platform.tracking import RunIntent, Telemetry
from omni_platform.train.config import TrainConfig
from omni_platform.train.figures import StepFigures, Window
from omni_platform.train.plan import Plan
from omni_platform.train.progress import ProgressDisplay
from omni_platform.train.state import Progress


class Notes:
    """Worker 0 reports; the others only keep the same sums, which belong to their progress. A context manager."""

    def __init__(
        self,
        run: RunIntent,
        config: TrainConfig,
        plan: Plan,
        progress: Progress,
        weights: Mapping[str, float],
        *,
        on_terminal: bool,
    ) -> None:
        self._config, self._plan, self._progress, self._weights = config, plan, progress, weights
        self._window = Window(progress.window)
        self._telemetry: Telemetry | None = None
        self._display: ProgressDisplay | None = None
        if dist.get_rank() == 0:
            self._telemetry = Telemetry(run)
            self._display = ProgressDisplay(
                config.run_name,
                total_steps=plan.total_steps,
                first_step=progress.step,
                on_terminal=on_terminal,
            )

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            self._report(progress.step, {**means, "learning_rate": rate, "epoch": progress.epoch})
        progress.window = self._window.sums

    def tag(self, name: str, text: str) -> None:
        """A tag of the run in the tracker."""
        if self._telemetry is not None:
            self._telemetry.tags({name: text})

    def picture(self, name: str, data: bytes) -> None:
        """A small file of the run in the tracker."""
        if self._telemetry is not None:
            self._telemetry.artifact(name, data)

    def history(self) -> dict[str, dict[int, float]]:
        """Metric -> value by step, of this attempt and those before it; on worker 0."""
        return {} if self._telemetry is None else self._telemetry.history()

    def close(self) -> None:
        """End the progress display; what is not sent yet stays in the spool."""
        if self._telemetry is not None:
            self._telemetry.close()
        if self._display is not None:
            self._display.close()

    def _report(self, step: int, means: Mapping[str, float]) -> None:
        if self._telemetry is not None and self._display is not None:
            self._telemetry.metrics(step, {f"train/{name}": value for name, value in means.items()})
            self._display.note(step, means)
