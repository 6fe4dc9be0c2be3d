"""Runs that are killed and started again: who dies, when, and what the whole looks like afterwards.

`python faults.py spec.json` is one start of a run of the toy task with a Ray of its own, in a process session of
its own: every process of that Ray can be found, and killed by its number. Tests and the report on reliability say
what is to happen.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from toy_runs import config
from toy_task import ToyRows, ToyTask

from omni_platform.tracking import TrackedRun, metric_history

TIME_LIMIT_S = 240.0
MICRO_BATCHES_PER_STEP = 4
Victim = Literal["worker", "driver", "everything", "nobody"]


@dataclass(frozen=True, kw_only=True)
class Blow:
    """Who is killed, and in the forward pass of which micro-batch (steps and micro-batches count from 1)."""

    victim: Victim
    """`nobody`: the driver gets SIGTERM, which asks the run to save and stop."""
    step: int = 6
    micro_batch: int = 2
    orphans: Literal["stay", "train on"] = "stay"
    """What the workers of a killed driver do in the seconds until Ray ends them; where they train on, they may still
    finish a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run from its first start to its end."""

    losses: dict[int, float]
    """Loss of every step, as the tracking store has it."""
    exit_codes: list[int]
    """How each start ended; -9 where the driver was killed."""
    resumed_from: list[int]
    """The steps from which the run went on."""
    steps_lost: int
    """Whole steps that had to be done again."""
    weights: dict[str, Any]
    """What the exported model says of its weights."""
    run: TrackedRun
    log: str


def endure(
    folder: Path,
    tracking_uri: str,
    blow: Blow,
    *,
    between: Callable[[Path], None] = lambda checkpoints: None,
    cpus: tuple[int, int] = (2, 2),
    **settings: Any,
) -> Story:
    """Start a toy run, let the blow fall, and give the same command again until the run is done.

    `between` is called with the folder of the run's checkpoints after a start that did not finish; `cpus` is the size
    of the cluster in the first start and in the second.
    """
    name, log = f"{blow.victim}-{folder.name}", folder / "log.txt"
    order, summary = folder / "order.json", folder / "summary.json"
    task = {"dropout": 0.2, "order": str(order), **settings.pop("task", {})}
    # Saved while training waits, unless asked otherwise: which checkpoint is the newest then depends on no clock.
    given = {"async_save": False, "tracking_uri": tracking_uri, "max_failures": 1, **settings}
    whole = config(folder, name, task=task, **given)
    order.write_text(json.dumps(asdict(blow)))
    codes: list[int] = []
    while not summary.exists() and len(codes) < len(cpus):
        spec = folder / "spec.json"
        spec.write_text(json.dumps({"config": whole, "num_cpus": cpus[len(codes)]}))
        codes.append(start([sys.executable, __file__, str(spec)], log))
        if codes == [-signal.SIGKILL]:
            between(folder / name / "checkpoints" / name)
    text = log.read_text()
    assert not order.exists(), f"the blow never fell\n{text[-8000:]}"
    assert summary.exists(), f"exit codes {codes}\n{text[-8000:]}"
    told = json.loads(summary.read_text())
    run = TrackedRun(tracking_uri=tracking_uri, experiment_id="", run_id=told["mlflow"]["run_id"])
    stopped = re.search(r"stopped after step (\d+)", text)
    resumed_from = [int(step) for step in re.findall(r"resumed from step (\d+)", text)]
    return Story(
        losses=metric_history(run, "train/loss"),
        exit_codes=codes,
        resumed_from=resumed_from,
        steps_lost=(int(stopped[1]) if stopped else blow.step - 1) - (resumed_from or [0])[0],
        weights=json.loads((Path(told["export"]) / "model.json").read_text()),
        run=run,
        log=text,
    )


def change_a_byte(checkpoints: Path) -> None:
    """Damage the newest checkpoint: one bit of the last worker's optimizer state turns over."""
    file = max(max(checkpoints.glob("checkpoint-*")).glob("engine/**/*optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def start(command: list[str], log: Path) -> int:
    """Run a command to its end, in a process session of its own of which nothing is left; returns its exit code."""
    return end([launch(command, log)])[0]


def launch(command: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """Start a command in a process session of its own; what it prints is added to the log."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    with log.open("a") as output:  # not a pipe: what a dead driver leaves behind would hold it open
        return subprocess.Popen(
            command, env={**inherited, **own, **environment}, stdout=output, stderr=output, start_new_session=True
        )


def end(processes: list[subprocess.Popen]) -> list[int]:
    """Wait until processes have ended, then kill what is left of their sessions; returns their exit codes."""
    try:
        return [process.wait(timeout=TIME_LIMIT_S) for process in processes]
    finally:
        kill([number for process in processes for number in members(process.pid)])


def members(session: int) -> list[int]:
    """The living processes of a session, by number."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):  # ended while we looked
            continue
        if state != "Z" and int(its_session) == session:
            found.append(int(stat.parent.name))
    return found


def kill(numbers: list[int]) -> None:
    """SIGKILL; those that have ended already are none of our business."""
    for number in numbers:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Doom:
    """Called before every forward pass of a worker; in the last worker it strikes once, where the order says."""

    def __init__(self, order: Path) -> None:
        self._order, self._calls, self._pause_s = order, 0, 0.0

    def __call__(self, *_: Any) -> None:
        self._calls += 1
        time.sleep(self._pause_s)
        if dist.get_rank() != dist.get_world_size() - 1 or not self._order.exists():
            return
        blow = Blow(**json.loads(self._order.read_text()))
        passes = MICRO_BATCHES_PER_STEP // dist.get_world_size()
        if self._calls != (blow.step - 1) * passes + blow.micro_batch:
            return
        self._order.unlink()
        driver = os.getsid(0)
        if blow.victim == "nobody":
            os.kill(driver, signal.SIGTERM)
            wait_for_the_flag()
            self._pause_s = 0.2  # worker 0 hears of it a step or two later, and toy steps take milliseconds
            return
        if blow.victim == "driver":
            os.kill(driver, signal.SIGKILL)
            if blow.orphans == "stay":
                time.sleep(TIME_LIMIT_S)  # Ray ends this process, some seconds after its driver
            return
        if blow.victim == "everything":
            kill([number for number in members(driver) if number != os.getpid()])
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_the_flag() -> None:
    """Until the driver has asked its workers to stop."""
    import ray

    (name,) = [name for name in ray.util.list_named_actors() if name.startswith("stop-")]
    flag: Any = ray.get_actor(name)
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while not ray.get(flag.is_raised.remote()):
        assert time.monotonic() < deadline_s, "the driver did not raise its flag"
        time.sleep(0.05)


def build_doomed(settings: dict[str, Any], **sharding: Any) -> ToyTask:
    """The toy task, with the blow of `order` in its way."""
    task = ToyTask(settings, **sharding)
    task.module.register_forward_pre_hook(Doom(Path(settings["order"])))
    return task


def main(spec: Path) -> None:
    """One start of the run."""
    import ray
    from faults import build_doomed as build  # by the module's name, not __main__'s: workers import it too

    from omni_platform.train.config import TrainConfig
    from omni_platform.train.launch import fit
    from omni_platform.train.stop import RunStopped

    torch.set_num_threads(1)
    given = json.loads(spec.read_text())
    ray.init(address="local", num_cpus=given["num_cpus"], include_dashboard=False, _node_ip_address="127.0.0.1")
    wanted = {name: tuple(value) if isinstance(value, list) else value for name, value in given["config"].items()}
    try:
        summary = fit(TrainConfig(**wanted), build_task=build, open_rows=functools.partial(ToyRows, 50))
    except RunStopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
    (spec.parent / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
