from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from toy_runs import BAD_ROW, ENGINES, STEPS

from omni_platform.tracking import TrackedRun, metric_history
from omni_platform.train.checkpoint import Storage
from omni_platform.train.loop import poisoned_if_not_finite

Runs = dict[str, list[dict[str, Any]]]


def history(runs: Runs, tracking_uri: str, name: str, figure: str = "loss") -> dict[int, float]:
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=runs[name][-1]["run"])
    return metric_history(run, f"train/{figure}")


def exported(runs: Runs, name: str) -> dict[str, Any]:
    return json.loads((Path(runs[name][-1]["export"]) / "model.json").read_text())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_lost_its_power_has_the_losses_of_one_that_did_not(
    runs: Runs, tracking_uri: str, engine: str
) -> None:
    first, second = runs[f"{engine}-cut"]
    assert first["cut"]
    assert first["run"] == second["run"]
    for figure in ("loss", "text", "latent", "grad_norm", "learning_rate", "epoch"):
        whole = history(runs, tracking_uri, f"{engine}-whole", figure)
        assert list(whole) == list(range(1, STEPS + 1))
        assert history(runs, tracking_uri, f"{engine}-cut", figure) == whole
    assert exported(runs, f"{engine}-cut") == exported(runs, f"{engine}-whole")


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_resumes_to_the_bit_and_learns_like_float32(runs: Runs, tracking_uri: str, stage: int) -> None:
    whole = history(runs, tracking_uri, f"bf16-{stage}-whole")
    assert history(runs, tracking_uri, f"bf16-{stage}-cut") == whole
    assert whole == pytest.approx(history(runs, tracking_uri, f"zero{stage}-whole"), rel=0.05)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_sharding_changes_no_loss_and_no_exported_weight(runs: Runs, tracking_uri: str, engine: str) -> None:
    for figure in ("loss", "grad_norm"):
        plain = history(runs, tracking_uri, "torch-whole", figure)
        assert history(runs, tracking_uri, f"{engine}-whole", figure) == pytest.approx(plain, rel=1e-5)
    ours, theirs = exported(runs, f"{engine}-whole"), exported(runs, "torch-whole")
    assert ours["weights"] == theirs["weights"]
    assert ours["total"] == pytest.approx(theirs["total"], rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_does_not_depend_on_how_a_step_is_cut_into_micro_batches(
    runs: Runs, tracking_uri: str, engine: str
) -> None:
    """Twelve rows with 1 to 5 tokens each: two micro-batches of three on each worker, or one of six."""
    for figure in ("loss", "text", "latent", "grad_norm"):
        steady = history(runs, tracking_uri, f"{engine}-steady", figure)
        assert history(runs, tracking_uri, f"{engine}-wide", figure) == pytest.approx(steady, rel=1e-5)
    assert exported(runs, f"{engine}-wide")["total"] == pytest.approx(
        exported(runs, f"{engine}-steady")["total"], rel=1e-6
    )


def test_rows_that_the_task_refuses_are_counted_named_and_never_taken(runs: Runs, tracking_uri: str) -> None:
    (outcome,) = runs["refusing"]
    assert (outcome["rows_in"], outcome["rows_used"], outcome["rows_refused"]) == (50, 49, 1)
    assert (outcome["steps"], outcome["skipped_steps"]) == (STEPS, 0)  # the row's loss is not finite
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=outcome["run"])
    told = run.client.get_run(run.run_id).data.tags["rows_refused"]
    assert told == f"50 rows in = 49 used + 1 refused: row-{BAD_ROW}. The first: row-{BAD_ROW} is too long"


@pytest.mark.parametrize("change", ["shrunk", "grown"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_goes_on_with_another_number_of_workers(runs: Runs, tracking_uri: str, engine: str, change: str) -> None:
    """Weights, moments and rows carry over: each step's loss is, up to rounding, that of a run with steady workers."""
    first, second = runs[f"{engine}-{change}"]
    assert first["cut"]
    assert (second["steps"], second["stopped"]) == (STEPS, False)
    for figure in ("loss", "grad_norm"):
        steady = history(runs, tracking_uri, f"{engine}-steady", figure)
        assert history(runs, tracking_uri, f"{engine}-{change}", figure) == pytest.approx(steady, rel=1e-5)
    ours, theirs = exported(runs, f"{engine}-{change}"), exported(runs, f"{engine}-steady")
    assert ours["total"] == pytest.approx(theirs["total"], rel=1e-6)


def test_a_loss_that_is_not_finite_has_a_gradient_that_no_engine_takes() -> None:
    for value, expected in ((2.0, 3.0), (float("inf"), float("nan")), (float("nan"), float("nan"))):
        weight = torch.ones((), requires_grad=True)
        loss = poisoned_if_not_finite(3.0 * weight + value)  # whose own gradient is 3 in any case
        loss.backward()
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(expected, nan_ok=True)
        assert float(loss.detach()) == pytest.approx(3.0 + value if expected == 3.0 else float("nan"), nan_ok=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_rows(runs: Runs) -> None:
    (outcome,) = runs["bad-stop"]
    assert f"row-{BAD_ROW}" in outcome["error"]
    assert outcome["error"].count("row-") == 3  # its micro-batch, and not the other three of the step
    assert "on_non_finite=skip" in outcome["error"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_skipped_step_changes_no_weight_and_the_run_goes_on(runs: Runs, tracking_uri: str, engine: str) -> None:
    (outcome,) = runs[f"{engine}-bad"]
    losses = history(runs, tracking_uri, f"{engine}-bad")
    assert outcome["skipped_steps"] == 2  # the row comes once in each of two epochs
    assert len(losses) == STEPS - 2
    assert losses == pytest.approx(history(runs, tracking_uri, "torch-bad"), rel=1e-5)
    first_bad = min(set(range(1, STEPS + 1)) - set(losses))
    steady = history(runs, tracking_uri, f"{engine}-steady")
    assert {s: losses[s] for s in range(1, first_bad)} == {s: steady[s] for s in range(1, first_bad)}
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=outcome["run"])
    assert f"row-{BAD_ROW}" in run.client.get_run(run.run_id).data.tags[f"skipped.{first_bad}"]


def test_the_time_of_a_run_is_accounted_for(runs: Runs) -> None:
    shares = runs["zero2-cut"][-1]["goodput"]
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.001)
    assert shares["recovery"] > 0
    assert runs["zero2-whole"][0]["goodput"]["recovery"] == 0
    assert runs["stopped"][-1]["goodput"]["recovery"] == 0  # it was asked to stop


def test_the_toy_learns(runs: Runs) -> None:
    (summary,) = runs["zero2-whole"]
    assert summary["loss_last"] < 0.7 * summary["loss_first"]
    assert (summary["steps"], summary["epochs"], summary["stopped"]) == (STEPS, 2.0, False)
    assert summary["text"] + 0.1 * summary["latent"] == pytest.approx(summary["loss_last"])


def test_a_request_to_stop_leaves_a_checkpoint_to_go_on_from(runs: Runs, tracking_uri: str) -> None:
    first, second = runs["stopped"]
    assert (first["stopped"], first["steps"]) == (True, 2)
    assert (second["stopped"], second["steps"]) == (False, STEPS)
    losses = history(runs, tracking_uri, "stopped")
    assert losses == history(runs, tracking_uri, "torch-whole")


def test_means_over_several_steps_survive_a_resume_between_two_notes(runs: Runs, tracking_uri: str) -> None:
    fine = history(runs, tracking_uri, "torch-whole")
    coarse = history(runs, tracking_uri, "coarse")
    assert coarse == pytest.approx(
        {4: sum(fine[s] for s in (1, 2, 3, 4)) / 4, 8: sum(fine[s] for s in (5, 6, 7, 8)) / 4}
    )


def test_every_figure_of_a_run_is_in_the_tracker_with_its_curves(runs: Runs, tracking_uri: str) -> None:
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=runs["zero2-whole"][0]["run"])
    names = {name.removeprefix("train/") for name in run.client.get_run(run.run_id).data.metrics}
    assert names >= {"loss", "text", "latent", "share/latent", "share/text", "tokens_per_s", "data_wait_share"}
    assert names >= {"grad_norm", "learning_rate", "epoch"}
    assert [a.path for a in run.client.list_artifacts(run.run_id)] == ["loss_curves.png"]
    shares = history(runs, tracking_uri, "zero2-whole", "share/text")
    assert all(0.9 < share <= 1.0 for share in shares.values())
    rates = history(runs, tracking_uri, "zero2-whole", "learning_rate")
    assert rates[1] == pytest.approx(0.005)
    assert rates[STEPS] < rates[2] == pytest.approx(0.01)


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_nothing_else(runs: Runs, tracking_uri: str) -> None:
    name = "zero2-full-middle"
    (run,) = runs[name]
    assert (run["steps"], run["checkpoint_failed"]) == (STEPS, None)
    assert kept(runs, name) == kept(runs, name, complete=False) == [STEPS, 3]
    assert history(runs, tracking_uri, name) == history(runs, tracking_uri, "zero2-whole")
    tags = MlflowClient(tracking_uri=tracking_uri).get_run(run["run"]).data.tags
    assert "checkpoint 6 did not reach" in tags["checkpoint_failed"]
    assert "No space left on device" in tags["checkpoint_failed"]


def test_a_disk_that_is_full_at_the_end_leaves_the_model_and_the_older_checkpoint(runs: Runs) -> None:
    name = "zero2-full-last"
    first, second = runs[name]
    assert (first["steps"], first["stopped"]) == (STEPS, False)
    assert f"checkpoint {STEPS} did not reach" in first["checkpoint_failed"]
    assert "No space left on device" in first["checkpoint_failed"]
    assert first["kept"] == [3]
    assert first["half"] == []
    whole = exported(runs, "zero2-whole")
    assert first["exported"]["digest"] == whole["digest"]
    # With space free again, the same run continues from the one that is there.
    assert (second["steps"], second["checkpoint_failed"]) == (STEPS, None)
    assert exported(runs, name)["digest"] == whole["digest"]
    assert kept(runs, name) == [STEPS, 6]


def test_a_run_whose_folder_was_taken_over_writes_no_checkpoint_and_no_model(runs: Runs) -> None:
    (run,) = runs["taken"]
    assert run["error"].startswith("taken: ")
    assert "was taken over by another run of this name; this one writes nothing more" in run["error"]
    assert run["kept"] == []
    assert run["exported"] is None


@pytest.mark.parametrize("source", ["checkp", "export"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_begins_with_the_weights_of_another_and_nothing_else_of_it(runs: Runs, engine: str, source: str) -> None:
    """Its one step has a learning rate that changes no weight: the export is what it began with, to the bit."""
    (run,) = runs[f"{engine}-from-{source}"]
    assert (run["steps"], run["epochs"]) == (1, pytest.approx(1 / 4))
    ours, theirs = exported(runs, f"{engine}-from-{source}"), exported(runs, "torch-whole")
    assert ours["digest"] == theirs["digest"]


def test_a_finished_run_is_told_and_one_with_another_learning_rate_is_refused(runs: Runs) -> None:
    first, other, again = runs["torch-whole"]
    assert "learning_rate was 0.01, is 0.1. Choose another run_name" in other["error"]
    assert again["steps"] == STEPS
    assert (first["said"], again["said"]) == (
        "",
        f"torch-whole: already finished at step {STEPS}; nothing is trained\n",
    )
    assert first["exported"] == again["exported"]


def kept(runs: Runs, name: str, *, complete: bool = True) -> list[int]:
    """Steps of the checkpoints that a run has left, newest first."""
    checkpoints = Path(runs[name][-1]["export"]).parent / "checkpoints"
    return Storage.at(str(checkpoints), name).steps(complete=complete)
