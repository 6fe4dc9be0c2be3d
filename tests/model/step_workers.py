"""One optimizer step on four rows, cut into micro-batches as each spec says; worker 0 writes what came of it."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stored_segments import Row, stored

from omni_model.task import build_task
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep, Sample, TextStep
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import make_engine
from omni_platform.train.feed import Feed
from omni_platform.train.loop import train_step
from omni_platform.train.place import Place
from omni_platform.train.plan import Plan
from omni_platform.train.sharded import build_sharded
from omni_platform.train.sizes import StepDivisors, measure_rows

CPU = torch.device("cpu")
LOOKS = (1, 3, 1, 2)
WORDS = ("green", "green and then blue and then red and then green again", "a red one", "blue")
RATE = 1e4


class FourRows:
    """Rows that differ in their words, looks, length of clip and, in one case, in having no sound."""

    ids = ("row-0", "row-1", "row-2", "row-3")

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cache  # noqa: B019
    def row(self, index: int) -> Row:
        scene = make_scene(seed=3, index=index, num_shots=2 + index % 2)
        looks = [LookStep(start_s=i % 2, end_s=i % 2 + 1) for i in range(LOOKS[index])]
        sample = Sample(
            sample_id=self.ids[index],
            clip_uri="clip.mp4",
            question="Which colour is on screen?",
            answer=WORDS[index],
            trajectory=(TextStep(text="The tone:"), *looks, TextStep(text=f" Answer: {WORDS[index]}")),
        )
        frames = render_frames(scene, times_s=np.arange(4 + 2 * (index % 2)) / 2, side_px=56)
        anchors = np.random.default_rng(index).normal(size=(len(looks), 2, 64)).astype(np.float32)
        waveform = None if index == 2 else render_waveform(scene)
        return Row(sample, frames, 2.0, waveform, stored(anchors, 1), ())

    outline = row


def step(spec: dict[str, Any]) -> dict[str, Any]:
    """Loss, raw terms and gradient norm of the step; the change of every weight goes into a file."""
    config = TrainConfig(
        run_name="r",
        dataset_dir="d",
        output_dir="o",
        num_workers=dist.get_world_size(),
        max_steps=1,
        max_grad_norm=0.0,
        # So large that the update is the gradient times the rate, and not its sign.
        learning_rate=RATE,
        adam_epsilon=1e3,
        weight_decay=0.0,
        **spec["layout"],
        task={
            "model_name_or_path": spec["base"],
            "options": {
                "num_visual": 1,
                "num_audio": 1,
                "bottleneck": "none",
                "latent_weight": 0.5,
                "latent_reduction": "mean",
            },
            **spec.get("task", {}),
        },
    )
    torch.manual_seed(0)
    task, rows = build_sharded(config, build_task, CPU), FourRows()
    task.module.train()
    engine = make_engine(config, task, CPU)
    sized = measure_rows(task, rows)
    plan = Plan.make(config, sized, world_size=dist.get_world_size())
    with engine.whole_weights():
        before = {name: p.detach().clone() for name, p in task.module.named_parameters() if p.requires_grad}
    place: Any = Place(device=CPU, storage=None, leads_node=True, stop_requested=lambda: False, report=lambda *_: None)
    with Feed(sized, plan.batches(dist.get_rank(), first_step=0), task.collate, depth=1) as feed:
        divisors = StepDivisors(sized, plan).of(0)
        figures = train_step(engine, feed, config, RATE, place, [], divisors=divisors, uploaded=False)
    with engine.whole_weights():
        change = {name: p.detach() - before[name] for name, p in task.module.named_parameters() if p.requires_grad}
    if dist.get_rank() == 0:
        torch.save(change, spec["change"])
    return {
        **figures.terms,
        **{n: c for n, c in figures.counts.items() if n.startswith("count/")},
        "grad_norm": engine.grad_norm(),
    }


def main(path: Path) -> None:
    torch.set_num_threads(1)
    specs = json.loads(path.read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{path}.rendezvous", rank=rank, world_size=world_size)
    results = {name: step(spec) for name, spec in specs.items()}
    if rank == 0:
        path.with_suffix(".results").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
