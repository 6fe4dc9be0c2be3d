"""Train a model and register it: python jobs/train.py --config jobs/configs/train/tiny_cpu.yaml

Ends with 0, with 1 after a failure, and with 128 + the signal's number after SIGTERM or SIGINT (the checkpoint is
written: the same command goes on from there). `ray job stop` waits for that as long as RAY_JOB_STOP_WAIT_TIME_S in the
job's env_vars says; its default of 3 s is too short.
"""

from __future__ import annotations

import functools
import json
import os
import sys

from omni_model.task import build_task
from omni_platform import storage
from omni_platform.config import parse_args
from omni_platform.data.batches import TrainingRows
from omni_platform.runtime import start_ray
from omni_platform.train.config import TrainConfig
from omni_platform.train.launch import fit
from omni_platform.train.stop import RunStopped

CONFIG = TrainConfig


def main() -> None:
    config = parse_args(TrainConfig)
    # Without a cluster: a local one that the workers fit into.
    start_ray(num_cpus=max(config.num_workers, os.cpu_count() or 1))
    try:
        summary = fit(
            config,
            build_task=build_task,
            open_rows=functools.partial(TrainingRows.open, storage.absolute(config.dataset_dir)),
        )
    except RunStopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
    text = json.dumps(summary, indent=2)
    storage.write_bytes(storage.join(config.output_dir, "summary.json"), f"{text}\n".encode())
    print(text, flush=True)


if __name__ == "__main__":
    main()
