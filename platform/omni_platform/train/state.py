"""What a checkpoint holds besides weights: where the run stands, its random states, what it was made from."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from omni_platform.config import fingerprint
from omni_platform.train.config import TrainConfig
from omni_platform.train.identity import STATE_FILE, refuse_differences


@dataclass(kw_only=True)
class Progress:
    """How far a run has come. The order of rows is a function of the step, so this is also its position."""

    step: int = 0
    """Optimizer steps done."""
    epoch: float = 0.0
    """Passes over the data done."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums since the last note to the tracker (see `figures.Window`)."""
    first: dict[str, float] = field(default_factory=dict)
    """The figures of the first note."""
    last: dict[str, float] = field(default_factory=dict)
    """The figures of the last note."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose loss or gradient was not finite and that changed no weight."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went so far (see `goodput.Goodput`)."""
    saved_at_s: float = 0.0
    """Unix time of the save."""
    stopped: bool = False
    """Whether the save was the last act of a run that was asked to stop."""


def save_state(folder: Path, progress: Progress, config: TrainConfig, identity: Mapping[str, Any], rank: int) -> None:
    """Write this worker's random states and, on worker 0, the progress and what the run is made of.

    `identity` is that of `run_identity`.
    """
    torch.save(random_states(), _random_file(folder, rank))
    if rank == 0:
        state = {
            "progress": asdict(progress),
            "identity": identity,
            "config_fingerprint": fingerprint(config),
        }
        (folder / STATE_FILE).write_text(json.dumps(state, indent=1))


def load_progress(folder: Path, config: TrainConfig, identity: Mapping[str, Any]) -> Progress:
    """The saved progress; `ResumeError` where the checkpoint belongs to another training (see `identity`)."""
    state = json.loads((folder / STATE_FILE).read_text())
    refuse_differences(state["identity"], identity, name=folder.name, config=config)
    return Progress(**state["progress"])


def load_random_states(folder: Path, rank: int) -> None:
    """Put this worker's generators where they were."""
    states = torch.load(_random_file(folder, rank), weights_only=True)
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def saved_world_size(folder: Path) -> int:
    """How many workers wrote a checkpoint."""
    return sum(1 for _ in folder.glob("random-*.pt"))


def random_states() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's global generators, as plain data and tensors."""
    kind, keys, *rest = cast("tuple", np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, keys.tolist(), *rest),
        "python": random.getstate(),
    }


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random-{rank:05d}.pt"
