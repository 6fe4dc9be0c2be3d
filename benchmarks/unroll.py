"""What a latent step costs: each engine against plain SFT of the same length, and against rerunning for every slot.

A tiny model on CPU, a prompt of about 600 positions, K = 40, one phase and two. The contestants take turns within one
run, and only ratios of their medians are printed: absolute times of a shared machine mean little.
"""

# B = rows, P = phases, K = slots, D = model width.

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.feedback import Feedback
from omni_model.folder import TINY_BASE, load_backbone
from omni_model.learner import Learner
from omni_model.masks import allowed, look_at, with_self
from omni_model.methods import make_method
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Kind, PlanBuilder, prepare_media

ROUNDS = 7
NUM_VISUAL, NUM_AUDIO = 32, 8
CLIP_S = 20


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for phases in (1, 2):
        figures |= {f"{name}_{phases}p": round(value, 3) for name, value in _compare(phases).items()}
    # The names without a suffix are those of the harder case.
    figures |= {name.removesuffix("_2p"): value for name, value in figures.items() if name.endswith("_2p")}
    print(json.dumps({"bench": "unroll", "figures": figures}))


def _compare(phases: int) -> dict[str, float]:
    loaded = load_backbone(str(TINY_BASE))
    batch = _batch(loaded, phases)
    learners = {
        engine: Learner(
            loaded.backbone,
            make_method("latent_omni", {"num_visual": NUM_VISUAL, "num_audio": NUM_AUDIO, **options}),
        )
        for engine, options in {
            "teacher_parallel": {"engine": "teacher_parallel"},
            "on_policy_full": {"engine": "recurrent", "gradient": "full"},
            "on_policy_detached": {"engine": "recurrent", "gradient": "detached"},
        }.items()
    }
    plain = replace(batch, triggers_BP=batch.triggers_BP[:, :0], num_visual=0, num_audio=0, anchors_BPKD=None)
    sft = Learner(loaded.backbone, make_method("sft"))
    contestants: dict[str, Callable[[], torch.Tensor]] = {
        "sft": lambda: sft(plain)["loss"],
        "naive": lambda: _naive_loss(loaded.backbone, batch),
        **{name: lambda learner=learner: learner(batch)["loss"] for name, learner in learners.items()},
    }
    seconds = _alternate(contestants, list(loaded.backbone.parameters()))
    return {
        "length": float(batch.input_ids_BL.shape[1]),
        "teacher_parallel_vs_sft": seconds["teacher_parallel"] / seconds["sft"],
        "on_policy_full_vs_sft": seconds["on_policy_full"] / seconds["sft"],
        "on_policy_detached_vs_sft": seconds["on_policy_detached"] / seconds["sft"],
        "on_policy_full_vs_naive": seconds["on_policy_full"] / seconds["naive"],
    }


def _batch(loaded, phases: int) -> Batch:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2 * CLIP_S, 56, 56, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, 16_000 * CLIP_S).astype(np.float32)
    media = prepare_media(frames, sample_fps=2.0, waveform=wave)
    method = make_method("latent_omni", {"num_visual": NUM_VISUAL, "num_audio": NUM_AUDIO})
    builder = PlanBuilder(loaded.tokenizer, loaded.vocabulary, media)
    builder.chat_prompt("Which colour is on screen when the low tone sounds?")
    for phase in range(phases):
        builder.text("Listen for low", Kind.TEXT, learn=True).latent_span(
            num_visual=NUM_VISUAL, num_audio=NUM_AUDIO, offsets=method.slot_offsets(), start_s=phase, end_s=phase + 5
        )
    plan = builder.text(" blue. Answer: blue", Kind.TEXT, learn=True).end_turn().build()
    anchors = torch.randn(phases, NUM_VISUAL + NUM_AUDIO, loaded.backbone.width)
    return collate([plan], anchors=[anchors])


def _naive_loss(backbone: QwenOmniBackbone, batch: Batch) -> torch.Tensor:
    """The whole sequence again for every slot, each time with one more latent in place; gradient throughout."""
    inputs = embed_batch(backbone, batch).inputs_BLD
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    feedback = Feedback(backbone.width)
    triggers = batch.triggers_BP[0].tolist()
    for trigger in triggers:
        for slot in range(batch.num_slots):
            stop = trigger + slot + 1
            hidden = _run(backbone, inputs[:, :stop], batch, seen, stop)
            latent = feedback(hidden[:, -1], torch.ones(len(inputs)))
            inputs = torch.cat([inputs[:, :stop], latent[:, None], inputs[:, stop + 1 :]], 1)
    hidden = _run(backbone, inputs, batch, seen, inputs.shape[1])
    learned = batch.labels_BL[:, 1:] >= 0
    logits = backbone.logits(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, batch.labels_BL[:, 1:][learned])


def _run(backbone: QwenOmniBackbone, inputs: torch.Tensor, batch: Batch, seen, stop: int) -> torch.Tensor:
    part = seen.take(torch.arange(stop)[None].expand(len(inputs), -1))
    mask = with_self(allowed(part, part, bottleneck="none", training=True))
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL[:, :, :stop], mask_BQK=mask)


def _alternate(
    contestants: dict[str, Callable[[], torch.Tensor]], parameters: list[torch.nn.Parameter]
) -> dict[str, float]:
    """Median seconds of forward and backward, the contestants taking turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + 1):
        for name, loss in contestants.items():
            # The naive loop is tens of times slower: fewer turns say enough.
            if name == "naive" and turn > 2:
                continue
            started = time.perf_counter()
            loss().backward()
            if turn:
                seconds[name].append(time.perf_counter() - started)
            for parameter in parameters:
                parameter.grad = None
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
