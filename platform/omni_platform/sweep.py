"""Many small trainings as one job: every cell a Ray task and an MLflow run, what is done skipped, what broke told.

A cell is done when its result lies in its folder, which is written last. A job that was killed is started again with
the same command and goes on with the cells that are missing. What a cell logs on its way is on the terminal and in its
spool at once, and in the tracker seconds later, whether or not that answers now.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.experimental import tqdm_ray
from tqdm import tqdm

from omni_platform import storage
from omni_platform.config import fingerprint
from omni_platform.tracking import Telemetry, plan_run

RESULT_NAME = "result.json"
_SETTLE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting and one seed."""

    variant: str
    seed: int
    config: Mapping[str, Any]
    """Everything that makes the result what it is, as plain values."""

    @property
    def key(self) -> str:
        """Names the cell's folder: another config is another cell."""
        return f"{self.variant}-s{self.seed}-{fingerprint(dict(self.config))[:8]}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a cell hands back."""

    result: dict[str, Any]
    """Plain values; becomes `result.json`, and what is a number at its top level becomes a metric."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further artifacts by name."""


Note = Callable[[int, Mapping[str, float]], None]
"""(steps done, figures by name): a point of the cell's learning curves."""
Work = Callable[[Cell, Note], Outcome]
"""Runs in a process of its own; must pickle by reference."""
Recipe = tuple[Callable[..., None], tuple[Any, ...]]
"""What makes a file: a function, and what it is given after the path."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sweep leaves things."""

    output_dir: str
    experiment_name: str
    tracking_uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How a sweep ended."""

    done: int
    skipped: int
    failed: Mapping[str, str]
    """Cell key to the error."""


def run_sweep(
    cells: Sequence[Cell], work: Work, place: Place, *, cpus_per_cell: float = 1.0, gpus_per_cell: float = 0.0
) -> Sweep:
    """Run every cell that has no result yet, as many side by side as the cluster has room for.

    A failed cell does not end the others; it has no result and is tried again by the next call. Raises `ValueError` for
    two cells of one key.
    """
    keys = [cell.key for cell in cells]
    if double := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"cells {double} are in the sweep twice; give each its own name or seed")
    missing = [cell for cell in cells if not storage.exists(result_uri(place, cell))]
    run = ray.remote(num_cpus=cpus_per_cell, num_gpus=gpus_per_cell, max_retries=1)(_run_cell)
    waiting = {run.remote(cell, work, place): cell for cell in missing}
    failed: dict[str, str] = {}
    # Ray's bar makes room for the lines of the cells, which Ray carries here from their processes.
    bar = tqdm_ray.tqdm(total=len(missing), desc="sweep", unit="cell")
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(ready[0])
        try:
            # Said here: a line of the last cell's process might not arrive before this one ends.
            print(f"{cell.key}: done · {ray.get(ready[0])}", flush=True)
        except Exception as error:  # the cell's own, or its process's end
            failed[cell.key] = str(error)
            print(f"cell {cell.key} failed: {error}", flush=True)
        bar.update(1)
    bar.close()
    return Sweep(done=len(missing) - len(failed), skipped=len(cells) - len(missing), failed=failed)


def make_files(missing: Mapping[str, Recipe], *, desc: str, gpus_per_file: float = 0.0) -> None:
    """Make files side by side on the cluster, each at its path by its recipe.

    A file must appear when it is complete, so that an interrupted call goes on with those that are missing.
    """
    tasks = [
        ray.remote(num_cpus=1, num_gpus=gpus_per_file)(make).remote(path, *given)  # type: ignore[call-arg]
        for path, (make, given) in missing.items()
        if not storage.exists(path)
    ]
    with tqdm(total=len(tasks), desc=desc, unit="file", disable=not tasks) as bar:
        while tasks:
            ready, tasks = ray.wait(tasks, num_returns=1)
            ray.get(ready[0])
            bar.update(1)


def result_uri(place: Place, cell: Cell) -> str:
    """Where a cell's result lies once it is done."""
    return storage.join(_folder(place, cell), RESULT_NAME)


def _folder(place: Place, cell: Cell) -> str:
    return storage.join(storage.absolute(place.output_dir), "cells", cell.key)


def _run_cell(cell: Cell, work: Work, place: Place) -> str:
    intent = plan_run(
        run_name=cell.key,
        run_folder=_folder(place, cell),
        output_dir=place.output_dir,
        tracking_uri=place.tracking_uri,
        experiment_name=place.experiment_name,
    )
    tags = {"variant": cell.variant, "seed": str(cell.seed), "cell": cell.key}
    with Telemetry(intent, owner=True) as telemetry:
        telemetry.status("RUNNING")
        telemetry.describe(config=cell.config, config_yaml=json.dumps(dict(cell.config), indent=1), tags=tags)

        def note(step: int, figures: Mapping[str, float]) -> None:
            telemetry.metrics(step, figures)
            print(f"{cell.key}: step {step} · {_shown(figures)}", flush=True)

        try:
            outcome = work(cell, note)
        except BaseException:
            telemetry.artifact("error.txt", traceback.format_exc().encode())
            telemetry.status("FAILED")
            _settle(telemetry, cell)
            raise
        text = json.dumps(outcome.result)
        _log(telemetry, outcome, text)
        telemetry.status("FINISHED")
        _settle(telemetry, cell)
    storage.write_bytes(result_uri(place, cell), text.encode())
    return _shown(outcome.result)


def _settle(telemetry: Telemetry, cell: Cell) -> None:
    settled = telemetry.settle(_SETTLE_S)
    if settled.unsent:
        print(
            f"{cell.key}: {settled.unsent} records did not reach {telemetry.intent.tracking_uri}; send them with: "
            f"python jobs/replay_tracking.py spool={settled.spool}",
            flush=True,
        )


def _shown(figures: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, float))


def _log(telemetry: Telemetry, outcome: Outcome, text: str) -> None:
    numbers = {
        name: float(value)
        for name, value in outcome.result.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    telemetry.metrics(0, numbers)
    telemetry.artifact(RESULT_NAME, text.encode())
    for name, data in outcome.files.items():
        telemetry.artifact(name, data)


def read_results(experiment_name: str, *, tracking_uri: str) -> list[dict[str, Any]]:
    """The result of every finished run of an experiment, with its `variant`, `seed`, `cell` and `run_id`.

    Of a cell that was run more than once the latest counts. Raises `ValueError` for an experiment that does not exist.
    """
    import mlflow.artifacts
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        raise ValueError(f"{tracking_uri} has no experiment {experiment_name}; run the sweep first")
    found: dict[str, dict[str, Any]] = {}
    page = None
    while True:
        runs = client.search_runs(
            [experiment.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=page,
        )
        for run in runs:
            tags = run.data.tags
            if "cell" not in tags:
                continue
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=RESULT_NAME, tracking_uri=tracking_uri
            )
            about = {"variant": tags["variant"], "seed": int(tags["seed"]), "cell": tags["cell"]}
            found[tags["cell"]] = json.loads(Path(path).read_text()) | about | {"run_id": run.info.run_id}
        page = runs.token
        if not page:
            return list(found.values())
