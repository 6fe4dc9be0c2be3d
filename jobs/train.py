"""Train a model and register it: python jobs/train.py --config jobs/configs/train/tiny_cpu.yaml

With --dry-run it starts nothing: it prints the memory of a GPU and of a machine, disk, time and GPU hours, and ends
with 1 where the run cannot fit, on the fewest workers too if it is elastic. Other GPUs and data:
dry_run.gpu_memory_gib=141 dry_run.num_rows=35000 and so on.

Ends with 0, with 1 after a failure, and with 128 + the signal's number after SIGTERM or SIGINT (the checkpoint is
written: the same command goes on from there). `ray job stop` waits for that as long as RAY_JOB_STOP_WAIT_TIME_S in the
job's env_vars says; its default of 3 s is too short.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# Nothing here loads torch or Ray: a mistake in the config is named within a second.
from omni_model.task_config import TaskConfig
from omni_platform.config import parse_args
from omni_platform.lease import refusals_in_one_line
from omni_platform.train.config import TrainConfig
from omni_platform.train.dry_run import DryRunConfig, estimate, refuse_what_cannot_fit, table, worlds

if TYPE_CHECKING:
    from omni_model.sizing import StepSize
    from omni_platform.data.batches import TrainingRows


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainConfig):
    """One training run of a model that reasons in latent states."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """Which model learns which method."""


CONFIG = TrainJob


@refusals_in_one_line()
def main() -> None:
    words = sys.argv[1:]
    if "--dry-run" in words:
        dry_run(words)
        return
    config = importable(parse_args(TrainJob))
    from omni_model.task import build_task
    from omni_platform import storage
    from omni_platform.data.batches import TrainingRows
    from omni_platform.runtime import start_ray
    from omni_platform.train.launch import fit
    from omni_platform.train.stop import RunStopped

    # Without a cluster: a local one that the workers fit into.
    start_ray(num_cpus=max(config.max_workers, os.cpu_count() or 1))
    try:
        summary = fit(
            config,
            build_task=build_task,
            open_rows=functools.partial(TrainingRows.open, storage.absolute(config.dataset_dir)),
            open_eval_rows=_eval_rows(config),
        )
    except RunStopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
    text = json.dumps(summary, indent=2)
    storage.write_bytes(storage.join(config.output_dir, "summary.json"), f"{text}\n".encode())
    print(text, flush=True)


def importable(config: TrainJob) -> TrainConfig:
    """The same settings without the class of this script, which Ray's workers could not import."""
    return TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})


def _eval_rows(config: TrainConfig) -> Callable[[], TrainingRows] | None:
    if config.eval_dataset_dir is None:
        return None
    from omni_platform import storage
    from omni_platform.data.batches import TrainingRows

    return functools.partial(TrainingRows.open, storage.absolute(config.eval_dataset_dir))


def dry_run(words: list[str]) -> None:
    """Print what the run would take; ends the process with 1 where it cannot fit."""
    about = [word.removeprefix("--") for word in words if word.removeprefix("--").startswith("dry_run.")]
    rest = [word for word in words if word != "--dry-run" and word.removeprefix("--") not in about]
    config = parse_args(TrainJob, rest)
    dry = parse_args(DryRunConfig, [word.removeprefix("dry_run.") for word in about])
    from omni_model.memory_savers import memory_savers
    from omni_model.sizing import longest_clip, size_step

    lengths = _lengths(config)
    try:
        row = longest_clip(config.task, text_tokens=dry.text_tokens, num_phases=dry.num_phases)
        limit = config.task.max_length
        longest = dry.max_length or max(lengths, default=min(row.length, limit))
        mean = dry.mean_length or (sum(lengths) // len(lengths) if lengths else longest)

        def measure(task: TaskConfig, length: int) -> StepSize:
            value_bytes = 2 if config.bf16 else 4
            shape = dataclasses.replace(row, length=length)
            return size_step(task, shape, batch_size=config.per_device_train_batch_size, value_bytes=value_bytes)

        found = [estimate(config, dry, measure, longest=longest, mean=mean, workers=n) for n in worlds(config)]
        print(table(config, dry, found, num_rows=dry.num_rows or len(lengths), mean=mean), flush=True)
        if not lengths and row.length > limit:
            print(
                f"\nnote: a clip of {config.task.fps_max_frames} frames at full size has {row.length:,} positions; "
                f"training refuses samples above max_length={limit:,}",
                flush=True,
            )
        for one in found:
            refuse_what_cannot_fit(config, dry, one, measure, longest=longest, savers=memory_savers)
    except ValueError as error:
        raise SystemExit(f"dry run: {error}") from None


def _lengths(config: TrainJob) -> list[int]:
    """Positions of the prepared samples; none where there is no data yet, or none that can be read from here.

    What preprocessing tells is the length of clip and words; the method's markers and slots come on top of each phase.
    """
    from omni_model.methods import make_method
    from omni_platform import storage
    from omni_platform.artifacts import find_card
    from omni_platform.data.parts import read_column

    dataset_dir = config.dataset_dir
    method = make_method(config.task.method, config.task.options)
    of_look = method.num_visual + method.num_audio + 2 if method.has_phases else 0
    try:
        if find_card(dataset_dir) is None:
            return []
        folder = storage.absolute(dataset_dir)
        lengths = read_column(folder, "samples", "length")
        looks = [sum(step["text"] is None for step in steps) for steps in read_column(folder, "samples", "trajectory")]
        return [length + of_look * n for length, n in zip(lengths, looks, strict=True) if length]
    except Exception as error:  # whatever a store answers: a laptop without its credentials can plan all the same
        print(f"note: {dataset_dir} cannot be read from here ({type(error).__name__}: {error}); assuming longest clips")
        return []


if __name__ == "__main__":
    main()
