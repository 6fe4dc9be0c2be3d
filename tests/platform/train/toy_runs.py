"""Runs of the toy task in two processes without Ray, whose figures other runs are compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = 8
BAD_ROW = 7
ENGINES = {
    "torch": {"engine": "torch"},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
}


def toy_runs(folder: Path, tracking_uri: str) -> dict[str, list[dict[str, Any]]]:
    """The attempts of each run, by name.

    Per engine a run that nothing disturbs, one that loses its power in step 6 and is started again, one that meets a
    row with no finite loss, and two that lose their power and go on with another number of workers.
    """
    attempts: list[dict[str, Any]] = []
    for engine, settings in ENGINES.items():
        whole, cut = (config(folder, f"{engine}-{name}", **settings) for name in ("whole", "cut"))
        attempts += [{"config": whole}, {"config": cut, "die_after": 6}, {"config": cut}]
    for stage in (2, 3):
        half = {"zero_stage": stage, "bf16": True}
        whole, cut = (config(folder, f"bf16-{stage}-{name}", **half) for name in ("whole", "cut"))
        attempts += [{"config": whole}, {"config": cut, "die_after": 6}, {"config": cut}]
    stopped = config(folder, "stopped", **ENGINES["torch"])
    attempts += [{"config": stopped, "die_after": 2, "politely": True}, {"config": stopped}]
    coarse = config(folder, "coarse", **ENGINES["torch"], logging_steps=4)
    attempts += [{"config": coarse, "die_after": 6}, {"config": coarse}]
    refusing = {"refuse_row": BAD_ROW, "bad_row": BAD_ROW, "dropout": 0.0}
    attempts.append({"config": config(folder, "refusing", **ENGINES["torch"], task=refusing)})
    attempts.append({"config": config(folder, "bad-stop", **ENGINES["torch"], task={"bad_row": BAD_ROW})})
    middle, last = (config(folder, f"zero2-full-{which}", zero_stage=2) for which in ("middle", "last"))
    later: list[dict[str, Any]] = [
        {"config": middle, "full": [6]},
        {"config": last, "full": [6, STEPS]},
        {"config": last},
        {"config": config(folder, "taken", **ENGINES["torch"]), "taken": True},
    ]
    for engine, settings in ENGINES.items():
        for source in (f"checkpoints/torch-whole/checkpoint-{STEPS:08d}", "export"):
            still: dict[str, Any] = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-30}
            still["init_weights_from"] = str(folder / "torch-whole" / source)
            name = f"{engine}-from-{source[:6]}"
            later.append({"config": config(folder, name, **settings, **still)})
    later.append({"config": {**config(folder, "torch-whole", **ENGINES["torch"]), "learning_rate": 0.1}})
    later.append({"config": config(folder, "torch-whole", **ENGINES["torch"])})
    shrinking, growing = [], []
    for engine, settings in ENGINES.items():
        bad = config(
            folder, f"{engine}-bad", **settings, task={"bad_row": BAD_ROW, "dropout": 0.0}, on_non_finite="skip"
        )
        attempts.append({"config": bad})
        elastic = {**settings, "task": {"dropout": 0.0}, "num_workers": (1, 2)}
        attempts.append({"config": config(folder, f"{engine}-steady", **elastic)})
        wide = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
        attempts.append({"config": config(folder, f"{engine}-wide", **elastic, **wide)})
        shrinking.append({"config": config(folder, f"{engine}-shrunk", **elastic)})
        growing.append({"config": config(folder, f"{engine}-grown", **elastic)})
    cut_short = [{**attempt, "die_after": 6} for attempt in (*shrinking, *growing)]
    found: dict[str, list[dict[str, Any]]] = {}
    launches = [  # with this many workers
        (2, [*attempts, *cut_short[: len(shrinking)]]),
        (2, later),
        (1, [*shrinking, *cut_short[len(shrinking) :]]),
        (2, growing),
    ]
    for number, (workers, chosen) in enumerate(launches):
        spec = {"tracking_uri": tracking_uri, "attempts": chosen}
        outcomes = run_workers(folder / f"spec-{number}.json", spec, workers=workers)
        for attempt, outcome in zip(chosen, outcomes, strict=True):
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


def run_workers(path: Path, spec: dict[str, Any], *, workers: int) -> list[dict[str, Any]]:
    path.write_text(json.dumps(spec))
    place = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **place}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_workers.py")), str(path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * workers, "\n".join(outputs)[-8000:]
    return json.loads(path.with_suffix(".results").read_text())
