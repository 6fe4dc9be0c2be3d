"""What Ray Train and MLflow cost per step: the same training with and without them, on two workers of this machine.

Three runs of the real loop (`omni_platform.train.loop.work`, DeepSpeed ZeRO-2 over gloo) exist at once and take
turns: while one runs, every process of the others is stopped (SIGSTOP), Ray's own servers included. So the contestants
meet the same machine, seconds apart, and none pays for another. Steps that a stop falls into do not count. A
contestant's figure is its best window of ten steps, which is the one that other work on the machine disturbed least.

What notes cost is far below what can be told from two runs, so `mlflow_on_vs_off` is one step plus its share of a note,
timed inside the tracker; the comparison of runs stands beside it.

* torchrun: started by `torch.distributed.run`, no notes to MLflow until the end of the run.
* torchrun, MLflow: the same with notes as users set them (`logging_steps` 10, a sqlite store).
* Ray, MLflow: the same again, started by `omni_platform.train.launch.fit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omni_platform.schema import RowSize

TURN_S = 5.0
ROUNDS = 6
WARM_UP_STEPS = 4
START_LIMIT_S = 240.0
WIDTH, ROWS = 768, 160
LOGGING_STEPS = 10


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        contestants = [
            Contestant(name="torchrun", folder=Path(folder), logging_steps=10**9),
            Contestant(name="torchrun_mlflow", folder=Path(folder), logging_steps=LOGGING_STEPS),
            Contestant(name="ray_mlflow", folder=Path(folder), logging_steps=LOGGING_STEPS),
        ]
        try:
            for contestant in contestants:
                print(f"{contestant.name}: first steps {contestant.start():.1f} s after its start", flush=True)
            rounds = [_take_turns(contestants) for _ in range(ROUNDS)]
            note_s = _note(Path(folder))
        finally:
            for contestant in contestants:
                contestant.end()
    best = {name: min(least for one in rounds for least in one[name]) for name in rounds[0]}
    for name, seconds in best.items():
        print(f"{name}: {1000 * seconds:.1f} ms a step in its best {LOGGING_STEPS} steps")
    figures = {
        "ray_vs_torchrun": round(best["ray_mlflow"] / best["torchrun_mlflow"], 4),
        "mlflow_on_vs_off": round(1 + note_s / (LOGGING_STEPS * best["torchrun"]), 4),
        "mlflow_on_vs_off_by_windows": round(best["torchrun_mlflow"] / best["torchrun"], 4),
        "ray_vs_torchrun_by_turns": _by_turns(rounds, "ray_mlflow", "torchrun_mlflow"),
        "mlflow_on_vs_off_by_turns": _by_turns(rounds, "torchrun_mlflow", "torchrun"),
    }
    print(json.dumps({"bench": "overhead", "figures": figures}))


def _note(folder: Path) -> float:
    """Seconds that the step waits for one note of ten metrics: median of 20, all contestants being stopped."""
    from omni_platform.tracking import Telemetry, plan_run

    intent = plan_run(run_name="notes", run_folder=folder / "notes", output_dir=folder / "notes")
    seconds = []
    with Telemetry(intent, owner=True) as telemetry:
        telemetry.check(60.0)  # the store is made
        for step in range(21):
            started_s = time.perf_counter()
            telemetry.metrics(step, {f"train/metric-{number}": float(step) for number in range(10)})
            seconds.append(time.perf_counter() - started_s)
    print(f"one note: {1000 * statistics.median(seconds[1:]):.1f} ms")
    return statistics.median(seconds[1:])


def _by_turns(rounds: list[dict[str, list[float]]], one: str, other: str) -> float:
    """The median over the rounds of the ratio of two turns' medians; the spread tells how busy the machine was."""
    ratios = [statistics.median(turn[one]) / statistics.median(turn[other]) for turn in rounds]
    print(f"{one} against {other}, round by round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    return round(statistics.median(ratios), 4)


@dataclass(kw_only=True)
class Contestant:
    """One run: two workers and whatever started them."""

    name: str
    folder: Path
    logging_steps: int
    _root: int = field(default=0, init=False)

    def start(self) -> float:
        """Start it, wait for its first steps, and stop it; returns the seconds that took."""
        spec = self.folder / f"{self.name}.json"
        spec.write_text(json.dumps({"steps": str(self._steps_file), "config": self._config()}))
        command = [sys.executable, __file__, "ray", str(spec)]
        if not self.name.startswith("ray"):
            torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=127.0.0.1",
                        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
            command = [sys.executable, *torchrun, __file__, "plain", str(spec)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RAY_AUTH_MODE": "disabled"}
        started_s = time.monotonic()
        with self._log.open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._root = process.pid
        while len(self.step_times()) < WARM_UP_STEPS:
            if process.poll() is not None or time.monotonic() - started_s > START_LIMIT_S:
                raise RuntimeError(f"{self.name} did not come to its first steps:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.1)
        self.signal(signal.SIGSTOP)
        return self.step_times()[0] - started_s

    def step_times(self) -> list[float]:
        """When worker 0 began each of its steps, in seconds of the monotonic clock."""
        return [float(line) for line in self._steps_file.read_text().splitlines()] if self._steps_file.exists() else []

    def signal(self, number: int) -> None:
        """Send a signal to every process of the run."""
        for process in _family(self._root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def end(self) -> None:
        if self._root:
            self.signal(signal.SIGKILL)

    @property
    def _steps_file(self) -> Path:
        return self.folder / f"{self.name}.steps"

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def _config(self) -> dict[str, Any]:
        output = self.folder / self.name
        settings = {"num_workers": 2, "use_gpu": False, "max_steps": 10**6, "save_steps": 10**6,
                    "logging_steps": self.logging_steps}  # fmt: skip
        return {"run_name": self.name, "dataset_dir": "none", "output_dir": str(output), **settings}


def _take_turns(contestants: list[Contestant]) -> dict[str, list[float]]:
    """Seconds of a step, in all windows of `LOGGING_STEPS` steps that lie wholly in a contestant's turn.

    Each window has one note in it, so none is without the cost of noting.
    """
    seconds = {}
    for contestant in contestants:
        began_s = time.monotonic()
        contestant.signal(signal.SIGCONT)
        time.sleep(TURN_S)
        contestant.signal(signal.SIGSTOP)
        ended_s = time.monotonic()
        # The first step of a turn also drains what had waited.
        whole = [t for t in contestant.step_times() if began_s < t < ended_s][1:]
        if len(whole) < 2:
            raise RuntimeError(f"no step of {contestant.name} fitted into {TURN_S} s; run this on a quieter machine")
        span = min(LOGGING_STEPS, len(whole) - 1)  # a busy machine does not get further
        pairs = zip(whole, whole[span:], strict=False)
        seconds[contestant.name] = [(late - early) / span for early, late in pairs]
    return seconds


def _family(root: int) -> list[int]:
    """A process and all that descend from it. Not its session: torchrun's workers have sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):  # ended while we looked
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    family = [root]
    for member in family:
        family += children.get(member, [])
    return family


class Numbers:
    """Rows made from their numbers."""

    ids = tuple(str(number) for number in range(1000))

    def __len__(self) -> int:
        return len(self.ids)

    def outline(self, index: int) -> int:
        return index

    def row(self, index: int) -> torch.Tensor:
        return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(index))


class Batch:
    """One row, on the way to the module."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> Batch:
        return Batch(self.x.to(device))


class Net(torch.nn.Module):
    """Wide enough that a step takes some tenths of a second on one core; notes when each step begins."""

    def __init__(self, steps: str) -> None:
        super().__init__()
        self._steps = Path(steps).open("a", buffering=1) if dist.get_rank() == 0 else None  # noqa: SIM115
        widths = ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)) * 2
        layers = [layer for ins, outs in widths for layer in (torch.nn.Linear(ins, outs), torch.nn.GELU())]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, batch: Batch, divisors: dict[str, float]) -> dict[str, torch.Tensor]:
        if self._steps is not None:
            self._steps.write(f"{time.monotonic()}\n")
        loss = self.layers(batch.x).square().mean() / divisors["loss"]
        return {"loss": loss, "tokens": torch.tensor(len(batch.x))}


class BenchTask:
    """A model that shrinks what it is given."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.module: torch.nn.Module = Net(options["steps"])

    def collate(self, rows: list[torch.Tensor]) -> Batch:
        return Batch(torch.cat(rows))

    def size(self, outline: int) -> RowSize:
        return RowSize(length=1, counts={"loss": 1})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "weight_decay": weight_decay}]

    def export(self, folder: Path) -> None:
        raise AssertionError("these runs are ended from outside")


def _run_under_ray(spec: dict[str, Any]) -> None:
    import ray

    from omni_platform.train.config import TrainConfig
    from omni_platform.train.launch import fit

    ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    given = TrainConfig(**spec["config"], task={"steps": spec["steps"]})
    fit(given, build_task=BenchTask, open_rows=Numbers)


def _run_plain(spec: dict[str, Any]) -> None:
    """One of two workers that torchrun has started; its rendezvous is in the environment."""
    from omni_platform.tracking import plan_run
    from omni_platform.train.checkpoint import Storage, gather
    from omni_platform.train.config import TrainConfig
    from omni_platform.train.loop import Job, work
    from omni_platform.train.place import Place

    dist.init_process_group("gloo")
    config = TrainConfig(**spec["config"], task={"steps": spec["steps"]})
    folder = Path(config.output_dir)
    run = None
    if dist.get_rank() == 0:
        run = plan_run(run_name=config.run_name, run_folder=folder, output_dir=folder)
    job = Job(config=config, build_task=BenchTask, open_rows=Numbers, run=gather(run)[0])
    place = Place(
        device=torch.device("cpu"),
        storage=Storage.at(str(folder), "checkpoints"),
        leads_node=dist.get_rank() == 0,
        stop_requested=lambda: False,
        report=lambda figures, path: None,
    )
    work(job, place)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        given = json.loads(Path(sys.argv[2]).read_text())
        {"ray": _run_under_ray, "plain": _run_plain}[sys.argv[1]](given)
