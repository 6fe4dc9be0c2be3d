"""Tries every fault, one after the other, and writes down what came of it: `make reliability` (about 20 minutes).

The faults are those of `test_faults.py`; the page is docs/results/reliability.md.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from faults import Blow, change_a_byte, endure
from torn_saves import endure_torn_save
from toy_runs import toy_runs

from omni_platform.tracking import TrackedRun, metric_history, store_uri

PAGE = Path(__file__).parents[3] / "docs" / "results" / "reliability.md"
ELASTIC = {"num_workers": (1, 2), "task": {"dropout": 0.0}}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A fault, and what came of it."""

    fault: str
    stage: int
    steps_lost: int | None
    """None where the run is not one that we can count in."""
    reference: str
    """The run that nothing happened to."""
    losses: dict[int, float]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="reliability-") as made:
        folder = Path(made)
        uri = store_uri(None, output_dir=folder)
        (folder / "runs").mkdir()
        runs = toy_runs(folder / "runs", uri)
        lines = []
        for trial in trials(folder, uri, runs):
            lines.append(line(trial, losses_of(runs[trial.reference][-1], uri)))
            print(lines[-1], flush=True)
    PAGE.write_text(page(lines))


def trials(folder: Path, uri: str, runs: dict[str, list[dict[str, Any]]]) -> Iterator[Trial]:
    """Every fault in turn."""
    for victim, what in (
        ("worker", "a worker gets SIGKILL"),
        ("driver", "the driver gets SIGKILL"),
        ("everything", "every process of Ray and the driver get SIGKILL"),
    ):
        for stage in (1, 2, 3):
            yield _killed(folder, uri, what, Blow(victim=victim), stage)
    yield _killed(
        folder, uri, "the driver gets SIGKILL, its workers train on until Ray ends them; uploads beside the training",
        Blow(victim="driver", step=7, orphans="train on"), 2, async_save=True,
    )  # fmt: skip
    yield _killed(
        folder, uri, "the driver gets SIGKILL, and one bit of the newest checkpoint turns over",
        Blow(victim="driver", step=8, micro_batch=1), 3, between=change_a_byte,
    )  # fmt: skip
    yield _killed(folder, uri, "the driver gets SIGTERM", Blow(victim="nobody", step=2), 2, save_steps=50)
    for pattern, when in (
        ("00006/engine/.*rank_00_model_states", "within the weights"),
        ("00006/manifest.json", "before the manifest"),
        ("00006/COMPLETE", "before the marker"),
    ):
        story = endure_torn_save(_new(folder), uri, dies_writing=pattern, zero_stage=2)
        lost = 6 - story.resumed_from[0]
        what = f"worker 0 gets SIGKILL in a save, {when}"
        yield Trial(fault=what, stage=2, steps_lost=lost, reference="zero2-whole", losses=story.losses)
    for cpus, change in (((2, 1), "2 workers to 1"), ((1, 2), "1 worker to 2")):
        what = f"the driver gets SIGKILL, and the next cluster has another size: {change}"
        yield _killed(folder, uri, what, Blow(victim="driver"), 2, reference="zero2-steady", cpus=cpus, **ELASTIC)
    for stage in (1, 2, 3):
        for name, change in (("shrunk", "2 workers to 1"), ("grown", "1 worker to 2")):
            what, told = (
                f"the power goes, and other workers take over: {change} (without Ray)",
                runs[f"zero{stage}-{name}"],
            )
            yield Trial(
                fault=what,
                stage=stage,
                steps_lost=None,
                reference=f"zero{stage}-steady",
                losses=losses_of(told[-1], uri),
            )


def _killed(
    folder: Path, uri: str, what: str, blow: Blow, stage: int, *, reference: str | None = None, **options: Any
) -> Trial:
    named = reference or f"zero{stage}-whole"
    try:
        story = endure(_new(folder), uri, blow, zero_stage=stage, **options)
    except AssertionError as error:  # the run did not get to its end: a row of the table too
        print(error)
        return Trial(fault=what, stage=stage, steps_lost=None, reference=named, losses={})
    return Trial(fault=what, stage=stage, steps_lost=story.steps_lost, reference=named, losses=story.losses)


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder, prefix="run-"))


def losses_of(outcome: dict[str, Any], uri: str) -> dict[int, float]:
    return metric_history(TrackedRun(tracking_uri=uri, experiment_id="", run_id=outcome["run"]), "train/loss")


def line(trial: Trial, reference: dict[int, float]) -> str:
    """A row of the table: the fault, ZeRO stage, steps done again, largest difference of a loss, and the verdict."""
    lost = "not counted" if trial.steps_lost is None else str(trial.steps_lost)
    if trial.losses.keys() != reference.keys():
        missing = sorted(reference.keys() - trial.losses.keys())
        return f"| {trial.fault} | {trial.stage} | {lost} | | **steps {missing} are missing** |"
    worst = max(abs(trial.losses[step] / reference[step] - 1) for step in reference)
    verdict = "same bits" if trial.losses == reference else "within 1e-5" if worst < 1e-5 else "**differs**"
    return f"| {trial.fault} | {trial.stage} | {lost} | {worst:.1e} | {verdict} |"


def page(lines: list[str]) -> str:
    names = ("torch", "ray", "deepspeed", "mlflow")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
    return TEXT.format(versions=f"Python {platform.python_version()}, {versions}", table="\n".join(lines))


TEXT = """# Faults, and what they change

Made by `make reliability` (about 20 minutes on two cores), with
{versions}, on CPU in float32 over gloo. The same
faults are tests (`tests/platform/train/test_faults.py`): the short ones run in `make test`, the others in
`make test-slow`.

The run: two workers, dropout, two micro-batches a step, 8 steps, a checkpoint every 3. The blow falls in the middle of
the accumulation of step 6 unless the row says otherwise; then the same command is given again (a killed worker is
Ray Train's to start again). Compared is the loss of *every* step with that of a run nothing happened to, as MLflow has
it. "Steps lost" are whole steps that had to be done again; the largest difference is relative.

| fault | ZeRO | steps lost | largest loss difference | verdict |
|---|---|---|---|---|
{table}

A run that goes on with another number of workers adds up its gradients in another order, so its losses agree to
rounding only; dropout is off there, since random states belong to one worker each. A worker that trains on after its
driver's death may still finish a checkpoint; the steps lost in that row therefore depend on the clock, the losses do
not. A negative number would say that the checkpoint is
newer than the step in which the driver died.

## What was not tried
* More than two workers, more than one machine, a GPU, NCCL, bfloat16. Bit-equality is a claim about CPU and float32.
* A network that breaks or slows down without a process dying; a machine that loses its clock.
* A real object store going away in the middle of a save. The torn saves run on a file system behind `fsspec` that
  kills its process at a chosen file, which takes the same way as a remote store.
* A cloud. A node that is drained with notice, and one that joins, are tried on a two-node Ray of one machine:
  `tests/platform/train/test_elastic.py`, in `make test-slow`.
* A full disk; a checkpoint damaged while it is being read.
"""


if __name__ == "__main__":
    main()
