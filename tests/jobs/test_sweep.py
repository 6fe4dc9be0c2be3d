"""The sweep's door: what a cell of its YAML means, what is refused, and two tiny cells from film to tracker."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

from omni_model.examine import ALL_CONDITIONS
from omni_model.folder import load_backbone
from omni_model.methods import make_method
from omni_platform.config import load_config
from omni_platform.media.benchmark import BENCHMARK, SHIFTS
from omni_platform.media.film import ask, to_sample
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.scene import make_scene
from omni_platform.sweep import read_results
from omni_platform.tracking import TrackedRun, metric_history

ROOT = Path(__file__).parents[2]
CONFIG = "jobs/configs/sweep/film.yaml"


@cache
def _door() -> ModuleType:
    spec = importlib.util.spec_from_file_location("door_sweep_test", ROOT / "jobs" / "sweep.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config():
    return load_config(_door().CONFIG, str(ROOT / CONFIG), [])


def _trial(config, name: str, **cells):
    return _door().trial_of(replace(config, cells={**config.cells, **cells}), name)


def test_every_cell_is_a_trial_of_its_own(config):
    trials = {name: _trial(config, name) for name in config.cells}
    for trial in trials.values():
        make_method(trial.method, trial.options)
    same = [(a, b) for a, b in combinations(trials, 2) if trials[a] == trials[b]]
    assert same == []
    assert trials["sft"] == replace(config.trial, method="sft")
    assert set(config.trial.families) <= set(BENCHMARK)
    assert set(config.exam.conditions) == set(ALL_CONDITIONS)
    assert len(load_backbone("tiny").tokenizer(config.trial.markers_like, add_special_tokens=False)["input_ids"]) == 1


def test_a_cell_begins_with_what_it_is_like(config):
    """However long the chain is, and options are added to options while all else is replaced."""
    strict = _trial(
        config,
        "third",
        first={"method": "latent_omni", "options": {"num_visual": 2, "num_audio": 2}, "num_clips": 7, "steps": 5},
        second={"like": "first", "options": {"num_audio": 1, "bottleneck": "strict"}},
        third={"like": "second", "num_clips": 9},
    )
    assert strict.options == {"num_visual": 2, "num_audio": 1, "bottleneck": "strict"}
    assert (strict.method, strict.num_clips, strict.steps) == ("latent_omni", 9, 5)
    assert strict.learning_rate == config.trial.learning_rate
    assert _trial(config, "cure_few") == replace(_trial(config, "cure"), num_clips=60)
    assert "like" in config.cells["cure_few"]  # reading a cell leaves the config as it is


@pytest.mark.parametrize("name", ["film", "hops"])
def test_every_sweep_config_can_be_examined_as_far_as_it_looks(name):
    """As many looks as the trajectories of its families have, in every variant that counts them."""
    config = load_config(_door().CONFIG, str(ROOT / f"jobs/configs/sweep/{name}.yaml"), [])
    families = config.scenes.families if config.scenes else config.trial.families
    scenes = [make_scene(seed=1, index=index) for index in range(50)]
    looks = max(len(to_sample(q, sample_id="", clip_uri="").looks) for scene in scenes for q in ask(scene, families))
    assert config.exam.max_phases >= looks
    for cell in config.cells:
        trial = _trial(config, cell)
        method = make_method(trial.method, trial.options)
        assert getattr(method, "max_train_phases", looks) >= looks


def test_other_scenes_are_other_cells_and_the_benchmark_keeps_its_own(config):
    door, trial = _door(), _trial(config, "cure")
    plain = door._content(config, trial)
    assert "scenes" not in plain
    longer = door._content(replace(config, scenes=door.Scenes(num_shots=18)), trial)
    assert longer == plain | {"scenes": {"num_shots": 18, "families": []}}


def test_another_precision_is_another_cell_and_float32_keeps_its_own(config):
    door, trial = _door(), _trial(config, "cure")
    plain = door._content(config, trial)
    assert "precision" not in plain
    assert door._content(replace(config, precision="bfloat16"), trial) == plain | {"precision": "bfloat16"}


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ({"like": "cur"}, "cell odd is like 'cur', which is none of sft, text_cot, "),
        ({"like": "cure", "step": 5}, "cell odd: unknown key 'step'; did you mean 'steps'?"),
        ({"like": "cure", "options": {"num_visuals": 1}}, "method 'latent_omni' has no option ['num_visuals']"),
        ({"method": "sfft"}, "cell odd: unknown method 'sfft'"),
    ],
)
def test_mistakes_in_a_cell_are_named(config, cell, complaint):
    with pytest.raises(SystemExit) as refused:
        _trial(config, "odd", odd=cell)
    assert str(refused.value).startswith("config error: cell odd") and complaint in str(refused.value)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    env |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "jobs/sweep.py", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


def test_the_help_tells_of_cells():
    done = _run("--help")
    assert done.returncode == 0 and "cells" in done.stdout and "like: other" in done.stdout, done.stderr


@pytest.mark.slow
def test_two_tiny_cells_from_film_to_tracker(tmp_path):
    sizes = "train: 6, train_synchrony: 4, validation: 4, test: 6, test_synchrony: 4, shifted: 4, per_file: 4"
    words = (
        "--config",
        CONFIG,
        f"output_dir={tmp_path}",
        f"film={{{sizes}}}",
        "only=[text_cot,cure]",
        "seeds=[0]",
        "trial.steps=2",
        "trial.clips_per_step=2",
        "exam.measured_clips=4",
        "num_cpus=1",
    )
    first = _run(*words)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert first.returncode == 0, first.stderr[-6000:]
    assert first.stdout.strip().endswith(f"2 cells run, 0 were there, 0 failed: {store}")
    found = {result["variant"]: result for result in read_results("film", tracking_uri=store)}
    assert found.keys() == {"text_cot", "cure"}
    cure = found["cure"]
    assert cure["method"] == "latent_omni" and 0.0 <= cure["own"] <= 1.0
    own, of_cot = (found[name]["report"]["conditions"] for name in ("cure", "text_cot"))
    assert {"own", "no_audio", "no_video", "neither", "latents_other", "span_removed"} <= own.keys()
    assert "latents_other" not in of_cot
    assert cure["shifts"].keys() == set(SHIFTS)
    # Families that no training asks are asked, and left out of the report's means.
    assert cure["rights"]["own"].keys() - own["own"]["by_type"].keys() == set(HELD_OUT)
    for kind, digits in cure["rights"]["own"].items():
        if kind in HELD_OUT:
            continue
        figure = own["own"]["by_type"][kind]
        assert len(digits) == len(found["text_cot"]["rights"]["own"][kind])
        assert figure["accuracy"] == pytest.approx(digits.count("1") / len(digits))
    run = TrackedRun(tracking_uri=store, experiment_id="", run_id=cure["run_id"])
    assert list(metric_history(run, "val/own")) == [2]
    encoded = sorted((tmp_path / "encoded").rglob("*.pt"))
    again = _run(*words)
    assert "0 cells run, 2 were there, 0 failed" in again.stdout
    assert sorted((tmp_path / "encoded").rglob("*.pt")) == encoded


@pytest.mark.slow
def test_a_cell_about_other_scenes(tmp_path):
    sizes = "train: 6, validation: 4, test: 6, per_file: 4"
    done = _run(
        "--config",
        "jobs/configs/sweep/hops.yaml",
        f"output_dir={tmp_path}",
        f"film={{{sizes}}}",
        "scenes={num_shots: 8, families: [colour_far_after_tone]}",
        "experiment_name=far",
        "only=[strict_terse]",
        "seeds=[0]",
        "trial.steps=2",
        "trial.clips_per_step=2",
        "num_cpus=1",
    )
    assert done.returncode == 0, done.stderr[-6000:]
    (found,) = read_results("far", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert found["rights"]["no_audio"].keys() == {"colour_far_after_tone"} and found["shifts"] == {}
    (folder,) = (tmp_path / "encoded").iterdir()
    assert folder.name.endswith("-8-colour_far_after_tone")
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"blank.pt", "train", "validation", "test"}
