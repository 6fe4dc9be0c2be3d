"""Learning curves from a real store: loss terms and held-out figures of the runs that were named, and no others."""

from __future__ import annotations

import re

import pytest

from omni_platform.report.curves import RunCurves, draw_curves, read_curves
from omni_platform.tracking import Telemetry, TrackedRun, plan_run


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[TrackedRun]:
    """Two runs in one store: `a` with a method and all sorts of metrics, `b` with a loss alone."""
    folder = tmp_path_factory.mktemp("store")
    names = ("train/loss", "train/latent", "train/epoch", "train/share/latent", "train/tokens_per_s", "val/accuracy")
    points = {
        "a": {10: dict.fromkeys(names, 1.0), 20: {**dict.fromkeys(names, 2.0), "eval/own": 0.8}},
        "b": {10: {"train/loss": 5.0}, 20: {"train/loss": 5.0}},
    }
    made = []
    for run_name, by_step in points.items():
        intent = plan_run(run_name=run_name, run_folder=folder / run_name, output_dir=folder)
        with Telemetry(intent, owner=True) as telemetry:
            if run_name == "a":
                telemetry.params({"task": {"method": "latent_omni"}})
            for step, values in by_step.items():
                telemetry.metrics(step, values)
            assert telemetry.settle(60.0).unsent == 0
            made.append(telemetry.run)
    return made


def test_curves_are_loss_terms_and_held_out_figures_with_more_than_one_point(runs: list[TrackedRun]):
    a, b = runs
    curves = read_curves([a.run_id, b.run_id, a.run_id], tracking_uri=a.tracking_uri)
    assert [run.label for run in curves] == ["a (latent_omni)", "b"]
    assert curves[0].histories == {name: {10: 1.0, 20: 2.0} for name in ("train/loss", "train/latent", "val/accuracy")}
    assert curves[1].histories == {"train/loss": {10: 5.0, 20: 5.0}}


def test_unknown_runs_and_unnamed_stores_are_refused_with_the_fix(runs: list[TrackedRun]):
    assert read_curves([]) == []
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        read_curves(["x"])
    with pytest.raises(ValueError, match=r"run nowhere is not in sqlite.*give ids of runs that are"):
        read_curves(["nowhere"], tracking_uri=runs[0].tracking_uri)


def test_each_metric_has_a_panel_with_a_line_for_every_run_that_has_it():
    history = {step: 1.0 / step for step in range(1, 2001)} | {7: float("nan")}
    runs = [
        RunCurves(label="first", histories={"val/accuracy": history, "train/text": history, "train/loss": history}),
        RunCurves(label="empty", histories={}),
        RunCurves(label="third", histories={"train/loss": history}),
    ]
    drawn = draw_curves(runs)
    panels = re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", drawn)
    assert [title for title, _ in panels] == ["loss", "text", "val: accuracy"]
    assert [re.findall(r"class=\"run (run\d)", panel) for _, panel in panels] == [["run0", "run2"], ["run0"], ["run0"]]
    assert "empty" not in drawn and "nan" not in drawn
    points = [len(path.split("L")) for path in re.findall(r' d="(M[^"]*)"', panels[0][1])]
    assert all(200 < count <= 300 for count in points)
    assert draw_curves([]) == draw_curves([runs[1]]) == ""


def test_a_line_falls_as_its_values_do():
    drawn = draw_curves([RunCurves(label="a", histories={"train/loss": {0: 3.0, 5: 2.0, 10: 1.0}})])
    path = re.findall(r' d="M([^"]*)"', drawn)[-1]
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in point.split()] for point in path.split("L"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x0 < x1 and y0 < y1  # downwards on a screen
