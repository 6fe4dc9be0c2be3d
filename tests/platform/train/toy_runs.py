"""Runs of the toy task in two processes without Ray, whose figures other runs are compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = 8
ENGINES = {
    "torch": {"engine": "torch"},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
}


def toy_runs(folder: Path, tracking_uri: str) -> dict[str, list[dict[str, Any]]]:
    """The attempts of each run, by name.

    Per engine a run that nothing disturbs, and one that loses its power in step 6 and is started again.
    """
    attempts: list[dict[str, Any]] = []
    for engine, settings in ENGINES.items():
        whole, cut = (config(folder, f"{engine}-{name}", **settings) for name in ("whole", "cut"))
        attempts += [{"config": whole}, {"config": cut, "die_after": 6}, {"config": cut}]
    stopped = config(folder, "stopped", **ENGINES["torch"])
    attempts += [{"config": stopped, "die_after": 2, "politely": True}, {"config": stopped}]
    coarse = config(folder, "coarse", **ENGINES["torch"], logging_steps=4)
    attempts += [{"config": coarse, "die_after": 6}, {"config": coarse}]
    found: dict[str, list[dict[str, Any]]] = {}
    outcomes = run_two_workers(folder / "spec.json", {"tracking_uri": tracking_uri, "attempts": attempts})
    for attempt, outcome in zip(attempts, outcomes, strict=True):
        found.setdefault(attempt["config"]["run_name"], []).append(outcome)
    return found


def config(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    return {
        "run_name": name,
        "dataset_dir": "none",
        "output_dir": str(folder / name),
        "task": {"dropout": 0.2},
        "num_workers": 2,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "warmup_steps": 2,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": 3,
        **settings,
    }


def run_two_workers(path: Path, spec: dict[str, Any]) -> list[dict[str, Any]]:
    path.write_text(json.dumps(spec))
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_workers.py")), str(path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)[-8000:]
    return json.loads(path.with_suffix(".results").read_text())
