"""How far the run is, for a person: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping


class ProgressDisplay:
    """Shown by worker 0; Ray carries its output to the driver and into the log of a submitted job."""

    def __init__(self, run_name: str, *, total_steps: int, first_step: int, on_terminal: bool) -> None:
        self._name, self._total, self._first = run_name, total_steps, first_step
        self._started_s = time.perf_counter()
        self._bar = _make_bar(run_name, total_steps, first_step) if on_terminal else None

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """A line with the figures of the last window; on a terminal they stand beside the bar."""
        text = f"loss {figures['loss']:.4g} · {figures['tokens_per_s']:.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_description(f"{self._name} · {text}")
            return
        seconds_per_step = (time.perf_counter() - self._started_s) / max(1, step - self._first)
        left_s = seconds_per_step * (self._total - step)
        wait = f"{figures['data_wait_share']:.0%} data wait"
        print(f"{self._name}: step {step}/{self._total} · {text} · {wait} · {left_s:.0f} s left", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _make_bar(run_name: str, total_steps: int, first_step: int):
    from ray.experimental import tqdm_ray  # draws on the driver's terminal what happens in a worker

    bar = tqdm_ray.tqdm(total=total_steps, desc=run_name)
    bar.update(first_step)
    return bar
