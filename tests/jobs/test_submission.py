"""Training as a submitted job: a Ray head beside the test, `ray job submit` with the repository as working dir."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.job_submission import JobStatus, JobSubmissionClient

from omni_model.folder import Preparation, save_folder
from omni_model.methods import make_method
from omni_model.pooling import fine_pool
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import read_vocabulary
from omni_platform.artifacts import Card, write_card
from omni_platform.data.parts import Part, write_part
from omni_platform.media.decode import DecodedClip
from omni_platform.media.film import ask, corpus, to_sample
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import Segment, SegmentFeatures
from omni_platform.tracking import TrackedRun, resolve_model

ROOT = Path(__file__).parents[2]
NUM_VISUAL = NUM_AUDIO = 2
SIZES = TinyConfig(hidden_size=48, num_layers=1, num_heads=3, intermediate_size=96, vision_size=64, tower_layers=1)
DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray head on ports of its own."""

    address: str
    environment: dict[str, str]

    @property
    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.address)

    def submit(self, *words: str, wait: bool) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of jobs/train.py, as a person types it."""
        env_vars = {
            "PYTHONPATH": "platform:model:serving",
            "RAY_JOB_STOP_WAIT_TIME_S": "120",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "OMP_NUM_THREADS": "1",
        }
        options = ["--address", self.address, "--working-dir", str(ROOT), *([] if wait else ["--no-wait"])]
        command = [*options, "--runtime-env-json", json.dumps({"env_vars": env_vars})]
        entry = ["python", "jobs/train.py", "--config", "jobs/configs/train/tiny_cpu.yaml", *words]
        return subprocess.run(
            [program("ray"), "job", "submit", *command, "--", *entry],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not tmp_path: its name is longer than Ray's sockets may be.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    ports = free_ports(7)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody is being served when it ends
        "OMP_NUM_THREADS": "1",
    }
    flags = ["--port", "--dashboard-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port",
             "--runtime-env-agent-port", "--metrics-export-port", "--ray-client-server-port"]  # fmt: skip
    numbered = [f"{flag}={port}" for flag, port in zip(flags, ports, strict=True)]
    command = ["start", "--head", "--block", "--num-cpus=3", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen([program("ray"), *command, *numbered], env=environment, stdout=log, stderr=log)
    made = Cluster(address=f"http://127.0.0.1:{ports[1]}", environment=environment)
    try:
        wait_for("the job server", lambda: answers(made, head, folder / "head.log"))
        yield made
    finally:
        if head.poll() is not None:
            print((folder / "head.log").read_text())  # it should be running still; here is why it is not
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put the job on a small model and two clips."""
    folder = tmp_path_factory.mktemp("submission")
    return [
        f"output_dir={folder / 'out'}",
        f"dataset_dir={write_rows(folder / 'rows')}",
        f"task.model_name_or_path={write_model(folder / 'model')}",
        f"task.options.num_visual={NUM_VISUAL}",
        f"task.options.num_audio={NUM_AUDIO}",
        f"tracking_uri=sqlite:///{folder}/mlflow.db",
        "registered_model_name=submitted",
        "per_device_train_batch_size=1",
        "warmup_steps=1",  # runs here may end after a few steps
        "logging_steps=1",
    ]


def test_a_stopped_job_leaves_a_checkpoint_and_the_next_submission_goes_on_from_it(
    cluster: Cluster, words: list[str]
) -> None:
    submitted = cluster.submit(*words, "run_name=stopped", "max_steps=100000", "save_steps=100000", wait=False)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    (job_id,) = [job.submission_id for job in cluster.client.list_jobs()]
    wait_for("a step", lambda: has_run(cluster, job_id, step=2))
    cluster.client.stop_job(job_id)
    wait_for("the job to end", lambda: cluster.client.get_job_status(job_id).is_terminal())
    log = cluster.client.get_job_logs(job_id)
    assert cluster.client.get_job_status(job_id) == JobStatus.STOPPED
    said = re.search(r"stopped stopped after step (\d+)", log)
    assert said, log
    steps = int(said[1])
    assert run_named("stopped", words).info.status == "KILLED"
    checkpoints = Path(value(words, "output_dir")) / "checkpoints" / "stopped"
    assert [p.parent.name for p in checkpoints.glob("checkpoint-*/COMPLETE")] == [f"checkpoint-{steps:08d}"]

    done = cluster.submit(*words, "run_name=stopped", f"max_steps={steps + 2}", "resume=force", wait=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from step {steps}" in done.stdout
    run = run_named("stopped", words)
    assert run.info.status == "FINISHED"
    assert run.data.tags["ray_submission_id"] != job_id
    assert run.data.tags["resumed_with.max_steps"] == str(steps + 2)
    assert {"train/text", "train/latent", "train/sync", "train/share/latent"} <= set(run.data.metrics)
    store = value(words, "tracking_uri")
    assert (resolve_model("models:/submitted@candidate", tracking_uri=store) / "method.json").is_file()


def test_a_failing_job_ends_with_an_error(cluster: Cluster, words: list[str]) -> None:
    nowhere = f"{value(words, 'output_dir')}/no-model"
    failing = ["run_name=failing", f"task.model_name_or_path={nowhere}", "engine=torch", "num_workers=1"]
    done = cluster.submit(*words, *failing, wait=True)
    assert done.returncode != 0
    assert "no-model" in done.stdout
    (job,) = [job for job in cluster.client.list_jobs() if "run_name=failing" in job.entrypoint]
    assert (job.status, job.driver_exit_code) == (JobStatus.FAILED, 1)
    assert run_named("failing", words).info.status == "FAILED"


def write_rows(folder: Path) -> Path:
    """Two short clips with a question each, as preprocess would leave them; the anchors are noise."""
    part, rng = Part(), np.random.default_rng(0)
    for index in range(2):
        scene = make_scene(seed=1, index=index, num_shots=3)
        times_s = np.arange(2 * round(scene.duration_s)) / 2.0
        frames = render_frames(scene, times_s=times_s, side_px=56)
        clip_id = f"clip-{index}"
        clip = DecodedClip(frames=frames, sample_fps=2.0, waveform=render_waveform(scene), duration_s=scene.duration_s)
        part.add_clip(clip_id, f"{clip_id}.mp4", clip)
        sample = to_sample(ask(scene, ("colour_at_tone",))[0], sample_id=f"q-{index}", clip_uri=f"{clip_id}.mp4")
        part.add_sample(sample, clip_id)
        for order, look in enumerate(sample.looks):
            segment = Segment(
                segment_id=f"{sample.sample_id}-{order}",
                sample_id=sample.sample_id,
                clip_id=clip_id,
                index=order,
                start_s=look.start_s,
                end_s=look.end_s,
            )
            visual, audio = (
                fine_pool(torch.from_numpy(rng.normal(size=(count, SIZES.hidden_size))), 64)
                for count in (NUM_VISUAL, NUM_AUDIO)
            )
            part.add_segment(segment, SegmentFeatures(visual=visual, audio=audio), encoder="noise")
    write_part(str(folder), part)
    write_card(folder, Card(name="anchors"))
    return folder


def write_model(folder: Path) -> Path:
    tokenizer = train_tokenizer(corpus())
    backbone = QwenOmniBackbone(build_tiny(SIZES, read_vocabulary(tokenizer)))
    method = make_method("sft")
    save_folder(
        folder,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(backbone.width),
        preparation=Preparation(),
    )
    return folder


def run_named(name: str, words: list[str]):
    """The MLflow run that the job of that name has left."""
    folder = Path(value(words, "output_dir"))
    run_id = json.loads((folder / "checkpoints" / name / "mlflow_run.json").read_text())["run_id"]
    return TrackedRun(tracking_uri=value(words, "tracking_uri"), experiment_id="", run_id=run_id).client.get_run(run_id)


def value(words: list[str], key: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


def has_run(cluster: Cluster, job_id: str, *, step: int) -> bool:
    log = cluster.client.get_job_logs(job_id)
    assert not cluster.client.get_job_status(job_id).is_terminal(), log
    return f": step {step}/" in log


def answers(cluster: Cluster, head: subprocess.Popen, log: Path) -> bool:
    assert head.poll() is None, log.read_text()
    try:
        cluster.client.list_jobs()
    except (ConnectionError, RuntimeError):
        return False
    return True


def wait_for(what: str, happened: Callable[[], bool]) -> None:
    """Ask until it has happened; fails after a time that no working machine needs."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline_s, f"waited too long for {what}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
