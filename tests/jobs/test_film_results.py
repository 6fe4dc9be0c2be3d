"""The door to the sweep's pages: from an MLflow experiment to a page that says how to make it again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

from omni_platform.sweep import RESULT_NAME

ROOT = Path(__file__).parents[2]
FAMILY = "colour_n_after_tone"


def _log_cell(store: str, variant: str, own: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("small")
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment("small", str(tmp_path / "files"))
    )
    run = client.create_run(experiment_id, tags={"cell": f"{variant}-s0", "variant": variant, "seed": "0"})
    rights = {"own": {FAMILY: own}}
    result = {
        "method": variant,
        "rights": rights,
        "report": {"measures": {}},
        "shifts": {},
        "steps": {FAMILY: 4.0},
        "train_s": 1.0,
    }
    (tmp_path / RESULT_NAME).write_text(json.dumps(result))
    client.log_artifact(run.info.run_id, str(tmp_path / RESULT_NAME))
    client.log_metric(run.info.run_id, "val/own", own.count("1") / len(own), step=100)
    client.set_terminated(run.info.run_id)


def test_a_page_says_what_made_it_and_of_how_many_cells(tmp_path):
    store, pages = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "pages"
    _log_cell(store, "sft", "1010", tmp_path)
    _log_cell(store, "text_cot", "1110", tmp_path)
    asked = ("experiment_name=small", "seeds=[0]", "further=[nowhere]", "num_scenes=200", f"output_dir={pages}")
    words = ("--config", "jobs/configs/sweep/results.yaml", *asked)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "jobs/film_results.py", *words, f"tracking_uri={store}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "left out: " in done.stdout and f"2 cells: {pages}/film.md" in done.stdout
    page = (pages / "film.md").read_text()
    shown = shlex.join([".venv/bin/python", "jobs/film_results.py", *words])
    assert f"```\n{shown}\n```" in page
    link = page.split("[the sweep's\nconfig](", 1)[1].split(")", 1)[0]
    assert (pages / link).resolve() == ROOT / "jobs/configs/sweep/film.yaml"
    assert "2 of the sweep's 57 cells are finished." in page
    rows = json.loads((pages / "film.json").read_text())
    assert {(row["variant"], row["own"]) for row in rows} == {("sft", 0.5), ("text_cot", 0.75)}
