"""Training that is killed, at every stage of sharding: afterwards every loss is that of a run nothing happened to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from faults import Blow, Story, Victim, change_a_byte, endure
from torn_saves import endure_torn_save
from toy_runs import STEPS

from omni_platform.tracking import TrackedRun, metric_history

Runs = dict[str, list[dict[str, Any]]]


def losses_of_the_whole_run(runs: Runs, tracking_uri: str, stage: int) -> dict[int, float]:
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=runs[f"zero{stage}-whole"][0]["run"])
    losses = metric_history(run, "train/loss")
    assert list(losses) == list(range(1, STEPS + 1))
    return losses


def weights_of_the_whole_run(runs: Runs, stage: int) -> dict[str, Any]:
    return json.loads((Path(runs[f"zero{stage}-whole"][0]["export"]) / "model.json").read_text())


def check_that_nothing_shows(story: Story, runs: Runs, tracking_uri: str, stage: int) -> None:
    """To the bit: the loss of every step, and the weights in the end."""
    assert story.losses == losses_of_the_whole_run(runs, tracking_uri, stage)
    assert story.weights == weights_of_the_whole_run(runs, stage)
    assert story.run.client.get_run(story.run.run_id).info.status == "FINISHED"


def test_a_killed_driver_goes_on_from_the_newest_checkpoint_that_is_sound(
    runs: Runs, tracking_uri: str, tmp_path: Path
) -> None:
    """The newest is damaged before the second start: it is refused by name, and the one before is used."""
    blow = Blow(victim="driver", step=8, micro_batch=1)
    story = endure(tmp_path, tracking_uri, blow, between=change_a_byte, zero_stage=3)
    assert story.exit_codes == [-9, 0]
    (refused,) = re.findall(
        r"checkpoint refused: \S*/(checkpoint-\d+): (\S+) has changed since it was saved", story.log
    )
    assert refused == ("checkpoint-00000006", "engine/engine/zero_pp_rank_1_mp_rank_00_optim_states.pt")
    assert (story.resumed_from, story.steps_lost) == ([3], 4)
    check_that_nothing_shows(story, runs, tracking_uri, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("victim", ["worker", "driver", "everything"])
def test_whoever_is_killed_the_losses_are_those_of_a_run_nothing_happened_to(
    runs: Runs, tracking_uri: str, tmp_path: Path, victim: Victim, stage: int
) -> None:
    """In the middle of an accumulation, two steps after the newest checkpoint."""
    story = endure(tmp_path, tracking_uri, Blow(victim=victim), zero_stage=stage)
    # A worker's death is the driver's business: it never ended. The others take the same command a second time.
    assert story.exit_codes == ([0] if victim == "worker" else [-9, 0])
    assert (story.resumed_from, story.steps_lost) == ([3], 2)
    check_that_nothing_shows(story, runs, tracking_uri, stage)


@pytest.mark.slow
def test_checkpoints_that_arrive_while_training_goes_on_and_orphans_that_train_on_change_no_loss(
    runs: Runs, tracking_uri: str, tmp_path: Path
) -> None:
    """How far the run had come depends on the clock; what it learned does not."""
    blow = Blow(victim="driver", step=7, orphans="train on")
    story = endure(tmp_path, tracking_uri, blow, zero_stage=2, async_save=True)
    assert story.exit_codes == [-9, 0]
    check_that_nothing_shows(story, runs, tracking_uri, 2)


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_loses_no_step(runs: Runs, tracking_uri: str, tmp_path: Path) -> None:
    story = endure(tmp_path, tracking_uri, Blow(victim="nobody", step=2), zero_stage=2, save_steps=50)
    assert story.exit_codes == [143, 0]
    assert (len(story.resumed_from), story.steps_lost) == (1, 0)  # from the checkpoint that the signal asked for
    check_that_nothing_shows(story, runs, tracking_uri, 2)


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [(2, 1), (1, 2)], ids=["two to one", "one to two"])
def test_a_cluster_of_another_size_takes_over(
    runs: Runs, tracking_uri: str, tmp_path: Path, cpus: tuple[int, int]
) -> None:
    """Ray gives an elastic run as many workers as there is room for; up to rounding no loss tells of it."""
    elastic = {"num_workers": (1, 2), "task": {"dropout": 0.0}}
    story = endure(tmp_path, tracking_uri, Blow(victim="driver"), cpus=cpus, zero_stage=2, **elastic)
    assert (story.resumed_from, story.steps_lost) == ([3], 2)
    assert f"which {cpus[0]} workers saved" in story.log
    steady = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=runs["zero2-steady"][0]["run"])
    assert story.losses == pytest.approx(metric_history(steady, "train/loss"), rel=1e-5)


@pytest.mark.parametrize(
    ("dies_writing", "there"),
    [
        ("00006/COMPLETE", {"manifest.json", "state.json", "random-00000.pt", "random-00001.pt"}),
        pytest.param("00006/manifest.json", {"state.json", "random-00001.pt"}, marks=pytest.mark.slow),
        pytest.param("00006/engine/.*rank_00_model_states", set(), marks=pytest.mark.slow),
    ],
    ids=["before the marker", "before the manifest", "within the weights"],
)
def test_a_save_that_was_cut_off_does_not_count(
    runs: Runs, tracking_uri: str, tmp_path: Path, dies_writing: str, there: set[str]
) -> None:
    story = endure_torn_save(tmp_path, tracking_uri, dies_writing=dies_writing, zero_stage=2)
    assert -9 in story.exit_codes[0]
    assert story.exit_codes[1] == [0, 0]
    assert there <= set(story.found)
    assert "COMPLETE" not in story.found
    assert story.resumed_from == [3]
    assert story.losses == losses_of_the_whole_run(runs, tracking_uri, 2)
