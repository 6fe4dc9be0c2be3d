"""Training under Ray Train, with real workers, one of which is killed."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import ray
import torch
from toy_runs import STEPS, config
from toy_task import ToyRows, ToyTask, num_tokens

from omni_platform.artifacts import Card, folder_fingerprint, write_card
from omni_platform.lease import LeaseHeldError
from omni_platform.staging import ForeignFilesError
from omni_platform.tracking import TrackedRun, connect, find_model, metric_history, resolve_model
from omni_platform.train.checkpoint import Storage
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import read_weights
from omni_platform.train.identity import ResumeError
from omni_platform.train.launch import fit, say_what_is_missing, with_absolute_paths
from omni_platform.train.plan import Plan


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # `local://` stands for an object store, which has no folders to make before a file.
        patch.setenv("FSSPEC_LOCAL_AUTO_MKDIR", "true")
        patch.setitem(fsspec.config.conf, "local", {"auto_mkdir": True})
        ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


def test_a_killed_worker_changes_no_loss(
    runs: dict[str, list[dict[str, Any]]], tracking_uri: str, tmp_path: Path
) -> None:
    """The run that Ray Train restarts has, to the bit, the losses of one without Ray and without a failure."""
    task = {"dropout": 0.2, "needs_file": os.path.relpath(__file__)}
    settings = TrainConfig(
        **config(tmp_path, "killed", zero_stage=2, task=task),
        max_failures=1,
        tracking_uri=tracking_uri,
        registered_model_name="toy",
        save_total_limit=1,
        async_save=False,  # so that step 3 is surely saved before the worker dies
        eval_dataset_dir="other",
        eval_steps=3,
    )
    kill_file = tmp_path / "kill"
    kill_file.touch()
    plan = Plan.make(settings, ToyRows(50), world_size=2)
    # A row that the first epoch leaves out: it is read in the second, when step 3 is long saved.
    fatal_row = next(row for row in plan.order(0)[48:] if row in plan.order(1)[:48])
    # What a driver that was killed while it wrote this file has left.
    folder = tmp_path / "killed" / "checkpoints" / "killed"
    folder.mkdir(parents=True)
    (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_re')

    summary = fit(
        settings,
        build_task=ToyTask,
        open_rows=functools.partial(ToyRows, 50, str(kill_file), fatal_row),
        open_eval_rows=functools.partial(ToyRows, 20),
    )

    assert not kill_file.exists()
    (undisturbed,) = runs["zero2-whole"]
    for name in ("steps", "epochs", "loss_first", "loss_last", "text", "latent", "grad_norm"):
        assert summary[name] == undisturbed[name]
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=summary["mlflow"]["run_id"])
    reference = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=undisturbed["run"])
    losses = metric_history(run, "train/loss")
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses == metric_history(reference, "train/loss")

    info = run.client.get_run(run.run_id)
    assert info.info.status == "FINISHED"
    assert info.data.params["learning_rate"] == "0.01"
    assert info.data.params["task.dropout"] == "0.2"
    assert summary["mlflow"]["model_version"] == 1
    assert (resolve_model("models:/toy@candidate", tracking_uri=tracking_uri) / "model.json").is_file()
    assert summary["goodput"]["recovery"] > 0
    assert info.data.metrics["goodput/recovery"] == summary["goodput"]["recovery"]

    # Beside the training every third checkpoint was evaluated, and the last one.
    evaluations = metric_history(run, "eval/loss")
    assert list(evaluations) == [3, 6, STEPS]
    assert evaluations[STEPS] < evaluations[3]
    assert evaluations[STEPS] == pytest.approx(loss_of_export(tmp_path / "killed"), rel=1e-5)
    best = min(evaluations, key=evaluations.__getitem__)
    assert (summary["best_step"], summary["best_evaluation"]["loss"]) == (best, evaluations[best])
    assert summary["failed_evaluations"] == []
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == sorted(
        {f"checkpoint-{step:08d}" for step in (STEPS, best)}
    )


def test_the_model_of_the_best_step_is_exported_and_registered(tracking_uri: str, tmp_path: Path) -> None:
    """Here the best step is the one with the greatest loss: the first that was evaluated."""
    own = {"engine": "torch", "num_workers": 1, "max_steps": 6, "tracking_uri": tracking_uri}
    settings = TrainConfig(
        **config(tmp_path, "best", **own),
        registered_model_name="best",
        async_save=False,
        eval_dataset_dir="other",
        eval_steps=3,
        greater_is_better=True,
    )
    given = {
        "build_task": ToyTask,
        "open_rows": functools.partial(ToyRows, 50),
        "open_eval_rows": functools.partial(ToyRows, 20),
    }
    summary = fit(settings, **given)
    assert (summary["best_step"], summary["exported_step"], summary["steps"]) == (3, 3, 6)
    export = Path(summary["export"])
    origin = json.loads((export / "training.json").read_text())
    assert (origin["step"], origin["last_step"], origin["chosen_by"]) == (3, 6, "eval/loss")
    assert origin["value"] == summary["best_evaluation"]["loss"]
    totals = {}
    for step in (3, 6):
        task = ToyTask({})
        checkpoint = Storage.at(str(tmp_path / "best" / "checkpoints"), "best").path(f"checkpoint-{step:08d}")
        task.module.load_state_dict(read_weights(Path(checkpoint) / "engine"))
        totals[step] = sum(float(p.detach().double().abs().sum()) for p in task.module.parameters())
    assert json.loads((export / "model.json").read_text())["total"] == totals[3] != totals[6]

    model = find_model("models:/best@candidate", tracking_uri=tracking_uri)
    assert (model.folder / "model.json").read_text() == (export / "model.json").read_text()
    about = {name: model.tags[name] for name in ("step", "last_step", "chosen_by", "export_fingerprint")}
    assert about == {
        "step": "3", "last_step": "6", "chosen_by": "eval/loss", "export_fingerprint": folder_fingerprint(export),
    }  # fmt: skip
    # Started again after its end, it registers nothing new.
    assert fit(settings, **given)["mlflow"]["model_version"] == model.version == 1
    assert len(connect(tracking_uri).search_model_versions("name = 'best'")) == 1


def loss_of_export(folder: Path) -> float:
    """The loss of the last checkpoint on 20 rows, computed without the evaluation."""
    checkpoint = Storage.at(str(folder / "checkpoints"), "killed").path(f"checkpoint-{STEPS:08d}")
    task = ToyTask({})
    task.module.load_state_dict(read_weights(Path(checkpoint) / "engine"))
    task.module.eval()
    rows = ToyRows(20)
    with torch.no_grad():
        whole = {"text": float(sum(map(num_tokens, range(20)))), "latent": 20.0}
        losses = [float(task.module(task.collate([rows.row(i)]), whole)["loss"]) for i in range(20)]
    return sum(losses)


def short_run(folder: Path, tracking_uri: str, **settings: Any) -> TrainConfig:
    return TrainConfig(
        **config(folder, "short", engine="torch", tracking_uri=tracking_uri, max_steps=2, warmup_steps=0, **settings)
    )


def start(settings: TrainConfig) -> dict[str, Any]:
    return fit(settings, build_task=ToyTask, open_rows=functools.partial(ToyRows, 50))


def test_every_output_of_a_run_goes_where_output_dir_says(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local://` is a store like `s3://` to us: everything must go through `storage`."""
    here = Path.cwd()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    settings = dataclasses.replace(
        short_run(tmp_path, tracking_uri),
        output_dir=f"local://{tmp_path}/store/run",
        storage_path=str(tmp_path / "checkpoints"),
        registered_model_name="remote",
    )
    summary = start(settings)
    assert summary["export"] == f"local://{tmp_path}/store/run/export"
    found = sorted(
        str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store").rglob("*") if path.is_file()
    )
    export = ["_files.json", "model.json", "training.json", "weights.pt"]
    assert found == [*(f"run/export/{name}" for name in export), "run/loss_curves.png"]
    assert (tmp_path / "store" / "run" / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    origin = json.loads((tmp_path / "store" / "run" / "export" / "training.json").read_text())
    assert origin["run_name"] == settings.run_name and origin["step"] == summary["steps"]
    assert list((tmp_path / "cwd").iterdir()) == []
    assert not (here / "local:").exists()  # where the workers run
    registered = resolve_model(f"models:/remote/{summary['mlflow']['model_version']}", tracking_uri=tracking_uri)
    assert (registered / "model.json").read_bytes() == (tmp_path / "store/run/export/model.json").read_bytes()


def test_a_remote_output_without_a_tracking_server_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = dataclasses.replace(
        short_run(tmp_path, ""),
        tracking_uri=None,
        output_dir=f"local://{tmp_path}/run",
        storage_path=str(tmp_path / "c"),
    )
    with pytest.raises(
        ValueError, match=r"output_dir=local://.*/run is an object store, and .* set tracking_uri \(or ML"
    ):
        start(settings)
    assert not (tmp_path / "local:").exists()


@pytest.mark.parametrize("what", ["run", "output"])
def test_a_second_driver_is_refused_at_once_with_the_name_of_the_first(
    what: str, tracking_uri: str, tmp_path: Path
) -> None:
    settings = short_run(tmp_path, tracking_uri)
    held = Path(settings.output_dir) / ("checkpoints/short" if what == "run" else "")
    program = (
        f"from omni_platform.lease import hold\nwith hold({str(held)!r}, owner='training run short'): print(1); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None and first.stdout.readline() == "1\n"
    before_s = time.monotonic()
    try:
        expected = rf"{held} is being written by training run short \(process {first.pid} on"
        with pytest.raises(LeaseHeldError, match=expected):
            start(settings)
        assert time.monotonic() - before_s < 10  # before any worker, and without waiting for the first to end
    finally:
        first.communicate("\n")
    assert not (held / "export").exists()


def test_an_export_that_would_be_lost_is_refused_before_the_training(tracking_uri: str, tmp_path: Path) -> None:
    settings = short_run(tmp_path, tracking_uri)
    mine = Path(settings.output_dir) / "export" / "weights_of_last_year.pt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(ForeignFilesError, match=r"export holds 1 file .*weights_of_last_year\.pt"):
        start(settings)
    assert mine.exists()


def test_a_run_whose_data_encoder_or_base_changed_is_refused_and_the_same_one_is_finished(
    tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, base = tmp_path / "data", tmp_path / "base"
    base.write_text("first weights")

    def prepare(manifest: str, encoder: str) -> None:
        write_card(data, Card(name="anchors", inputs={"/m.jsonl": manifest}, encoder_fingerprint=encoder))

    settings = dataclasses.replace(
        short_run(tmp_path, tracking_uri, task={"base_file": str(base)}), dataset_dir=str(data)
    )
    prepare("one answer", "encoder")
    assert start(settings)["steps"] == 2
    prepare("another answer", "encoder")
    with pytest.raises(ResumeError, match=r"data\.inputs\./m\.jsonl was 'one answer', is 'another answer'"):
        start(settings)
    prepare("one answer", "another encoder")
    with pytest.raises(ResumeError, match=r"data\.encoder_fingerprint was 'encoder', is 'another encoder'"):
        start(settings)
    prepare("one answer", "encoder")
    with pytest.raises(ResumeError, match=r"run 'short' has checkpoints up to step 2 .* resume=never"):
        start(dataclasses.replace(settings, resume="never"))
    base.write_text("other weights")
    with pytest.raises(Exception, match="task_base was 'first weights', is 'other weights'"):
        start(settings)
    base.write_text("first weights")
    capfd.readouterr()
    assert start(settings)["steps"] == 2
    assert "short: already finished at step 2; nothing is trained" in capfd.readouterr().out


def test_paths_mean_the_same_place_in_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = TrainConfig(run_name="r", dataset_dir="s3://bucket/rows", output_dir="out")
    monkeypatch.chdir(tmp_path)
    resolved = with_absolute_paths(given)
    assert resolved.output_dir == str(tmp_path / "out")
    assert resolved.storage_path == str(tmp_path / "out" / "checkpoints")
    assert resolved.dataset_dir == "s3://bucket/rows"
    assert capsys.readouterr().err == ""

    uploaded = tmp_path / "runtime_resources" / "working_dir_files" / "package"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    with_absolute_paths(given)
    assert "goes away with it; give an absolute path" in capsys.readouterr().err


def test_a_cluster_that_is_too_small_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    given = TrainConfig(run_name="r", dataset_dir="d", output_dir="o", num_workers=2)
    say_what_is_missing(given, gpu=False)
    assert capsys.readouterr().out == ""
    say_what_is_missing(given, gpu=True)
    assert "2 workers need 2 GPU, 0 are there" in capsys.readouterr().out
