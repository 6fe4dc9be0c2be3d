"""What grouping rows by length saves: padding share and real tokens per second, against random and sorted order.

Clips of log-normal length on the toy base, plain SFT steps. Random order is what a shuffled loader gives; sorted order
pads least but meets all long clips at once and is the same in every epoch; grouped order is `group_by_length`.
The three take turns within one run.
"""

# L = positions.

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import torch

from omni_model.batch import Batch, collate
from omni_model.folder import TINY_BASE, load_backbone
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.sequence import Kind, Plan, PlanBuilder, prepare_media
from omni_platform.data.batches import epoch_order
from omni_platform.train.plan import group_by_length

ROWS, BATCH = 2400, 8
TIMED_EVERY = 20  # batches
TURNS = 3


def main() -> None:
    torch.set_num_threads(1)
    loaded = load_backbone(str(TINY_BASE))
    learner = Learner(loaded.backbone, make_method("sft"))
    seconds = np.clip(np.random.default_rng(0).lognormal(1.7, 0.6, ROWS), 2, 24).round().astype(int)
    plans = {s: _plan(loaded, s) for s in sorted(set(seconds.tolist()))}
    lengths = np.array([len(plans[s]) for s in seconds.tolist()])
    order = epoch_order([f"row-{i}" for i in range(ROWS)], seed=0, epoch=0)
    orders = {
        "random": order,
        "grouped": group_by_length(order, lengths, BATCH, seed=0, epoch=0),
        "sorted": np.argsort(lengths, kind="stable"),
    }
    figures = {f"padding_share_{name}": round(_padding(lengths[chosen]), 3) for name, chosen in orders.items()}
    batches = {
        name: [collate([plans[s] for s in seconds[rows].tolist()]) for rows in chosen.reshape(-1, BATCH)[::TIMED_EVERY]]
        for name, chosen in orders.items()
    }
    speed = _tokens_per_s(learner, batches)
    figures |= {
        "grouped_vs_random_tokens_per_s": round(speed["grouped"] / speed["random"], 3),
        "grouped_vs_sorted_tokens_per_s": round(speed["grouped"] / speed["sorted"], 3),
    }
    print(f"{ROWS} rows of {lengths.min()} to {lengths.max()} positions, {BATCH} a batch, {TURNS} turns")
    print(json.dumps({"bench": "padding", "figures": figures}))


def _plan(loaded, seconds: int) -> Plan:
    rng = np.random.default_rng(seconds)
    frames = rng.integers(0, 255, (2 * seconds, 56, 56, 3), dtype=np.uint8)
    waveform = rng.normal(0, 0.1, 16_000 * seconds).astype(np.float32)
    media = prepare_media(frames, sample_fps=2.0, waveform=waveform)
    builder = PlanBuilder(loaded.tokenizer, loaded.vocabulary, media).chat_prompt("Which colour is on screen?")
    return builder.text("Answer: blue", Kind.TEXT, learn=True).end_turn().build()


def _padding(lengths: np.ndarray) -> float:
    batches = lengths.reshape(-1, BATCH)
    return 1 - lengths.sum() / float((batches.max(1) * BATCH).sum())


def _tokens_per_s(learner: Learner, batches: dict[str, list[Batch]]) -> dict[str, float]:
    """Median real tokens per second of forward and backward over the chosen batches, after one warm-up each."""
    tokens = {name: sum(int((b.kinds_BL != Kind.PAD).sum()) for b in chosen) for name, chosen in batches.items()}
    spent: dict[str, list[float]] = {name: [] for name in batches}
    for turn in range(TURNS + 1):
        for name, chosen in batches.items():
            began_s = time.perf_counter()
            for batch in chosen:
                learner(batch)["loss"].backward()
                learner.zero_grad(set_to_none=True)
            if turn:
                spent[name].append(time.perf_counter() - began_s)
    return {name: tokens[name] / statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
