"""Two workers share one model: run with a spec.json in each, with RANK set; worker 0 writes the results."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stored_segments import stored

from omni_model.folder import load_backbone
from omni_model.task import build_task
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep, Sample, SegmentFeatures, TextStep
from omni_platform.train.checkpoint import gather
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import make_engine
from omni_platform.train.sharded import build_sharded

CPU = torch.device("cpu")
STEPS = 2


@dataclass
class Row:
    sample: Sample
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: tuple[SegmentFeatures, ...]
    other_anchors: tuple[SegmentFeatures, ...]


def row(number: int, *, looks: int, sound: bool) -> Row:
    scene = make_scene(seed=3, index=number, num_shots=2)
    seen = [LookStep(start_s=i % 2, end_s=i % 2 + 1) for i in range(looks)]
    sample = Sample(
        sample_id=f"row-{number}",
        clip_uri="clip.mp4",
        question="Which colour is on screen?",
        answer="green",
        trajectory=(TextStep(text="The tone:"), *seen, TextStep(text=" Answer: green")),
    )
    frames = render_frames(scene, times_s=np.arange(4) / 2, side_px=56)
    anchors = np.random.default_rng(number).normal(size=(looks, 2, 64)).astype(np.float32)
    return Row(sample, frames, 2.0, render_waveform(scene) if sound else None, stored(anchors, 1), ())


def rows_of(rank: int, step: int) -> list[Row]:
    """What keeps workers out of step where nothing is done about it: worker 1 is mute and looks less often."""
    number = 10 * rank + step
    return [row(number, looks=2 - rank, sound=rank == 0 or step == 1)]


def make(spec: dict[str, Any], **task: Any) -> Any:
    config = TrainConfig(
        run_name="r",
        dataset_dir="d",
        output_dir="o",
        learning_rate=1e-3,
        weight_decay=10.0,  # so much that a weight in the wrong group shows
        num_workers=2,
        zero_stage=spec["zero_stage"],
        task={
            "model_name_or_path": spec["base"],
            "options": {"num_visual": 1, "num_audio": 1, "max_train_phases": 2, "feedback": "linear"},
            **task,
        },
    )
    torch.manual_seed(0)
    return config, build_sharded(config, build_task, CPU)


def load(spec: dict[str, Any]) -> dict[str, Any]:
    """Bytes of pretrained weights on every worker, and whether they are those that one process reads."""
    config, task = make(spec)
    weights = list(task.module.backbone.parameters())
    mine = sum(part.numel() * 4 for p in weights for part in (p.data, getattr(p, "ds_tensor", torch.empty(0))))
    engine = make_engine(config, task, CPU)
    with engine.whole_weights():
        found = {name: value.clone() for name, value in task.module.backbone.state_dict().items()}
    wanted = load_backbone(spec["base"]).backbone.state_dict()
    same = found.keys() == wanted.keys() and all(torch.equal(found[n], v) for n, v in wanted.items())
    return {"held": gather(mine), "whole": sum(v.numel() * 4 for v in wanted.values()), "same": gather(same)}


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """A few steps; with `export`, the model is written before the last step and again after it."""
    config, task = make(spec, **spec.get("task", {}))
    task.module.train()
    engine = make_engine(config, task, CPU)
    losses = []
    for step in range(STEPS):
        if step == STEPS - 1 and spec.get("export"):
            export(engine, task, Path(spec["export"]) / "before")
        batch = task.collate(rows_of(dist.get_rank(), step))
        loss = engine.forward(batch, spec.get("divisors"))["loss"]
        engine.backward(loss)
        engine.step(1e-3)
        losses.append(float(loss.detach()))
    if spec.get("export"):
        export(engine, task, Path(spec["export"]) / "after")
    with engine.whole_weights():
        sums = {n: float(p.detach().double().abs().sum()) for n, p in task.module.named_parameters()}
    return {"losses": gather(losses), "sums": sums}


def export(engine: Any, task: Any, folder: Path) -> None:
    with engine.whole_weights():
        if dist.get_rank() == 0:
            task.export(folder)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    specs = json.loads(path.read_text())
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{path}.rendezvous", rank=rank, world_size=2)
    results = {name: {"load": load, "train": train}[spec["do"]](spec) for name, spec in specs.items()}
    if rank == 0:
        path.with_suffix(".results").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
