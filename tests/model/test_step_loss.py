"""The loss of an optimizer step is that of its rows, however they are cut into micro-batches and shared by workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from step_workers import FourRows

from omni_model.folder import Preparation, save_folder
from omni_model.methods import make_method
from omni_model.task import build_task

ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
}
CUTS = {1: ((4, 1), (2, 2), (1, 4)), 2: ((2, 1), (1, 2))}
"""By number of workers: rows of a micro-batch and micro-batches of a worker. Always the same four rows."""
TERMS = ("loss", "text", "latent", "sync")


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("base")
    method = make_method("sft")
    heads = method.build_heads(64)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=Preparation())
    return str(folder)


@pytest.fixture(scope="module")
def steps(base, tmp_path_factory) -> dict[tuple[str, int, int], dict[str, Any]]:
    """(engine, workers, rows of a micro-batch) -> what came of the step."""
    folder = tmp_path_factory.mktemp("steps")
    found = {}
    for workers, cuts in CUTS.items():
        specs = {}
        for engine, settings in ENGINES.items():
            for batch, accumulation in cuts:
                layout = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
                key = f"{engine}-{workers}-{batch}"
                specs[key] = {"base": base, "layout": settings | layout, "change": str(folder / f"{key}.pt")}
        if workers == 1:
            layout = {"engine": "torch", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
            by_sample = {"text_loss_reduction": "sample_mean"}
            specs["samples-1-1"] = {
                "base": base,
                "layout": layout,
                "change": str(folder / "samples.pt"),
                "task": by_sample,
            }
        path = folder / f"spec-{workers}.json"
        path.write_text(json.dumps(specs))
        for key, outcome in _run(path, workers).items():
            engine, count, batch = key.split("-")
            outcome["change"] = torch.load(specs[key]["change"], weights_only=True)
            found[engine, int(count), int(batch)] = outcome
    return found


def _run(path: Path, workers: int) -> dict[str, dict[str, Any]]:
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    shared |= {"WORLD_SIZE": str(workers), "DS_ACCELERATOR": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("step_workers.py")), str(path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * workers, "\n".join(outputs)[-8000:]
    return json.loads(path.with_suffix(".results").read_text())


@pytest.fixture(scope="module")
def by_hand(base) -> dict[str, Any]:
    """Every row alone: sums and counts of its terms, and the weights of the sum."""
    options = {"num_visual": 1, "num_audio": 1, "bottleneck": "none", "latent_weight": 0.5, "latent_reduction": "mean"}
    torch.manual_seed(0)
    task = build_task({"model_name_or_path": base, "options": options})
    task.module.train()
    rows = []
    for i in range(4):
        out = task.module(task.collate([FourRows().row(i)]))
        counts = {name: int(out[f"count/{name}"]) for name in TERMS[1:]}
        assert dict(task.size(FourRows().outline(i)).counts) == counts
        rows.append({"counts": counts, "means": {name: float(out[name]) for name in TERMS[1:]}})
    return {"rows": rows, "weights": task.loss_weights}


def _expected(by_hand: dict[str, Any]) -> dict[str, float]:
    """Sum by count of every term over the four rows, and their weighted sum."""
    rows, terms = by_hand["rows"], {}
    for name in TERMS[1:]:
        total = sum(row["means"][name] * row["counts"][name] for row in rows)
        terms[name] = total / sum(row["counts"][name] for row in rows)
    return {**terms, "loss": sum(by_hand["weights"][name] * value for name, value in terms.items())}


def test_the_rows_of_the_example_differ_so_that_means_of_means_would_show(by_hand):
    counts = [row["counts"] for row in by_hand["rows"]]
    assert len({c["text"] for c in counts}) == 4
    assert [c["latent"] for c in counts] == [2, 6, 2, 4]
    assert [c["sync"] for c in counts] == [1, 3, 0, 2]  # the third has no sound
    of_means = sum(row["means"]["text"] for row in by_hand["rows"]) / 4
    assert abs(of_means - _expected(by_hand)["text"]) > 0.05


@pytest.mark.parametrize(("workers", "batch"), [(w, b) for w, cuts in CUTS.items() for b, _ in cuts])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_has_the_loss_and_the_gradients_of_its_rows(steps, by_hand, engine, workers, batch):
    step, whole = steps[engine, workers, batch], steps["torch", 1, 4]
    assert {name: step[name] for name in TERMS} == pytest.approx(_expected(by_hand), rel=1e-5)
    for name in TERMS[1:]:
        assert step[f"count/{name}"] == sum(row["counts"][name] for row in by_hand["rows"])
    assert step["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    assert step["change"].keys() == whole["change"].keys()
    largest = max(float(change.abs().max()) for change in whole["change"].values())
    for name, change in step["change"].items():
        torch.testing.assert_close(change, whole["change"][name], atol=1e-5 * largest, rtol=1e-3)


def test_the_mean_over_samples_stays_an_option(steps, by_hand):
    text = sum(row["means"]["text"] for row in by_hand["rows"]) / 4
    step = steps["samples", 1, 1]
    assert step["text"] == pytest.approx(text, rel=1e-5)
    assert step["count/text"] == 4
    assert step["latent"] == pytest.approx(_expected(by_hand)["latent"], rel=1e-5)
