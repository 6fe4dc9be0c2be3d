"""`jobs/evaluate.py` on a registered model: what it leaves names the version that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from omni_platform.artifacts import folder_fingerprint
from omni_platform.tracking import connect, register_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from test_submission import write_model, write_rows  # noqa: E402

ROOT = HERE.parents[1]


def test_card_report_run_and_version_name_each_other(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(store)
    run_id = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))).info.run_id
    model = write_model(tmp_path / "model")
    for step in (4, 8):
        register_model(model, "measured", run_id, step=step, tracking_uri=store)
    rows = write_rows(tmp_path / "rows")
    job, config = ROOT / "jobs" / "evaluate.py", ROOT / "jobs" / "configs" / "evaluate" / "film.yaml"
    words = ["model=models:/measured@candidate", f"dataset_dir={rows}", f"output_dir={tmp_path / 'out'}"]
    words += [f"tracking_uri={store}", f"run_id={run_id}", "conditions=[own]", "num_timelines=0", "max_new_tokens=4"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, str(job), "--config", str(config), *words],
        env={**env, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    fingerprint = folder_fingerprint(model)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == {
        "asked_for": "models:/measured@candidate",
        "fingerprint": fingerprint,
        "name": "measured",
        "version": 2,
        "step": 8,
    }
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["inputs"]["models:/measured/2"] == fingerprint
    assert "models:/measured@candidate (version 2, step 8)" in (tmp_path / "out" / "report.html").read_text()
    accuracy = report["conditions"]["own"]["all"]["accuracy"]
    tags = client.get_model_version("measured", "2").tags
    assert (tags["eval.own"], tags["eval.run_id"]) == (f"{accuracy:.4f}", run_id)
    assert tags["eval.dataset_fingerprint"] == card["inputs"][str(rows)]
    assert not any(key.startswith("eval.") for key in client.get_model_version("measured", "1").tags)
    assert client.get_run(run_id).data.tags["evaluated_model"] == "measured/2"
