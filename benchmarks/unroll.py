"""What a latent step costs: each engine against plain SFT of the same length, and against rerunning for every slot.

A tiny model on CPU, a prompt of about 600 positions, K = 40, one phase and two, one row and four. The contestants take
turns within one run, and only ratios are printed: of the processor time of one thread in the quickest turn, since what
slows a turn down on a shared machine is others. Memory is what the forward pass keeps for the backward one:
the bytes of all tensors that autograd saves, each storage once, weights left out. Errors are those of the latents, and
of the gradient of all weights, relative to the loop that reruns the whole sequence for every slot.
"""

# B = rows, P = phases, K = slots, D = model width.

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.feedback import Feedback
from omni_model.folder import TINY_BASE, load_backbone
from omni_model.learner import Learner
from omni_model.masks import allowed, look_at, with_self
from omni_model.methods import make_method
from omni_model.pooling import norm_weighted_pool
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Kind, PlanBuilder, prepare_media
from omni_model.unroll import UnrollConfig, unroll

ROUNDS, NAIVE_ROUNDS, FITTING_STEPS = 10, 2, 120
NUM_VISUAL, NUM_AUDIO, CLIP_S = 32, 8, 20
SLOTS = NUM_VISUAL + NUM_AUDIO
# Text loss alone, and nobody is kept from seeing the clip: what the naive loop computes too.
OPTIONS = {
    "num_visual": NUM_VISUAL,
    "num_audio": NUM_AUDIO,
    "latent_weight": 0.0,
    "sync_weight": 0.0,
    "bottleneck": "none",
}
ENGINES: dict[str, dict[str, Any]] = {
    "teacher_parallel": {"engine": "teacher_parallel"},
    "recurrent_full": {"engine": "recurrent"},
    "recurrent_kv_only": {"engine": "recurrent", "gradient": "kv_only"},
    "recurrent_detached": {"engine": "recurrent", "gradient": "detached"},
    "two_pass_full": {"engine": "two_pass"},
    "two_pass_kv_only": {"engine": "two_pass", "gradient": "kv_only"},
    "jacobi_8_full": {"engine": "jacobi", "jacobi_tolerance": 0.0},
    "jacobi_8_kv_only": {"engine": "jacobi", "jacobi_tolerance": 0.0, "gradient": "kv_only"},
}
EXACT = ("recurrent_full", "two_pass_full")
"""Own latents with the gradient of the naive loop."""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = load_backbone(str(TINY_BASE))
    figures: dict[str, Any] = {}
    for phases in (1, 2):
        batch = _batch(loaded, phases)
        figures |= {f"{name}_{phases}p": value for name, value in _compare(loaded, batch).items()}
        sweeps = _sweeps_for(loaded.backbone, batch, 1e-3, start="trigger")
        figures[f"jacobi_sweeps_for_1e3_{phases}p"] = sweeps
        figures[f"jacobi_plain_sweeps_for_1e3_{phases}p"] = _sweeps_for(
            loaded.backbone, batch, 1e-3, start="trigger", carry=False
        )
    figures |= {f"{name}_2p_4rows": value for name, value in _compare_rows(loaded, _batch(loaded, 2, rows=4)).items()}
    figures |= {f"{name}_2p_fitted": value for name, value in _compare_fitted(_batch(loaded, 2)).items()}
    # The names without a suffix are those of the harder case.
    figures |= {name.removesuffix("_2p"): value for name, value in figures.items() if name.endswith("_2p")}
    print(json.dumps({"bench": "unroll", "figures": {n: _rounded(v) for n, v in figures.items()}}))


def _compare(loaded: Any, batch: Batch) -> dict[str, float]:
    contestants = _contestants(loaded.backbone, batch)
    for loss in contestants.values():
        loss().backward()
    seconds = _alternate(contestants, loaded.backbone)
    kept = {name: _bytes_kept(loss, loaded.backbone) for name, loss in contestants.items()}
    own = min(EXACT, key=lambda name: seconds[name])
    figures = {
        "length": float(batch.input_ids_BL.shape[1]),
        "on_policy_full_vs_sft": seconds[own] / seconds["sft"],
        "on_policy_full_vs_naive": seconds[own] / seconds["naive"],
        "naive_vs_sft": seconds["naive"] / seconds["sft"],
        "naive_memory_vs_sft": kept["naive"] / kept["sft"],
    }
    for name in [*ENGINES, "recurrent_full_recomputed"]:
        figures[f"{name}_vs_sft"] = seconds[name] / seconds["sft"]
        figures[f"{name}_vs_naive"] = seconds[name] / seconds["naive"]
        figures[f"{name}_memory_vs_sft"] = kept[name] / kept["sft"]
        figures[f"{name}_memory_vs_naive"] = kept[name] / kept["naive"]
    return figures | _errors(loaded.backbone, batch)


def _compare_rows(loaded: Any, batch: Batch) -> dict[str, float]:
    contestants = _contestants(loaded.backbone, batch)
    chosen = {name: contestants[name] for name in ("sft", "teacher_parallel", "recurrent_full", "jacobi_8_full")}
    seconds = _alternate(chosen, loaded.backbone)
    return {f"{name}_vs_sft": seconds[name] / seconds["sft"] for name in chosen if name != "sft"}


def _contestants(backbone: QwenOmniBackbone, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
    plain = replace(batch, triggers_BP=batch.triggers_BP[:, :0], num_visual=0, num_audio=0, anchors_BPKD=None)
    sft = Learner(backbone, make_method("sft"))
    learners = {name: _learner(backbone, options) for name, options in ENGINES.items()}
    return {
        "sft": lambda: sft(plain)["loss"],
        "naive": lambda: _naive(backbone, batch).loss,
        **{name: lambda learner=learner: learner(batch)["loss"] for name, learner in learners.items()},
        "recurrent_full_recomputed": lambda: _recomputed(learners["recurrent_full"], batch),
    }


def _learner(backbone: QwenOmniBackbone, options: dict[str, Any]) -> Learner:
    return Learner(backbone, make_method("latent_omni", {**OPTIONS, **options}))


def _recomputed(learner: Learner, batch: Batch) -> torch.Tensor:
    backbone: Any = learner.backbone
    backbone.recompute = True
    loss = learner(batch)["loss"]
    backbone.recompute = False
    return loss


def _batch(loaded: Any, phases: int, *, rows: int = 1) -> Batch:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2 * CLIP_S, 56, 56, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, 16_000 * CLIP_S).astype(np.float32)
    media = prepare_media(frames, sample_fps=2.0, waveform=wave)
    method = make_method("latent_omni", OPTIONS)
    builder = PlanBuilder(loaded.tokenizer, loaded.vocabulary, media)
    builder.chat_prompt("Which colour is on screen when the low tone sounds?")
    for phase in range(phases):
        builder.text("Listen for low", Kind.TEXT, learn=True).latent_span(
            num_visual=NUM_VISUAL, num_audio=NUM_AUDIO, offsets=method.slot_offsets(), start_s=phase, end_s=phase + 5
        )
    plan = builder.text(" blue. Answer: blue", Kind.TEXT, learn=True).end_turn().build()
    anchors = torch.randn(phases, SLOTS, loaded.backbone.width, generator=torch.Generator().manual_seed(0))
    return collate([plan] * rows, anchors=[anchors] * rows)


@dataclass(frozen=True)
class _Naive:
    loss: torch.Tensor
    latents_PKD: torch.Tensor


def _naive(backbone: QwenOmniBackbone, batch: Batch) -> _Naive:
    """The whole sequence again for every slot, each time with one more latent in place; gradient throughout."""
    inputs = embed_batch(backbone, batch).inputs_BLD
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    feedback = Feedback(backbone.width)
    latents = []
    for trigger in batch.triggers_BP[0].tolist():
        for slot in range(batch.num_slots):
            stop = trigger + slot + 1
            hidden = _run(backbone, inputs[:, :stop], batch, seen, stop)
            latents.append(feedback(hidden[:, -1], torch.ones(len(inputs))))
            inputs = torch.cat([inputs[:, :stop], latents[-1][:, None], inputs[:, stop + 1 :]], 1)
    hidden = _run(backbone, inputs, batch, seen, inputs.shape[1])
    learned = batch.labels_BL[:, 1:] >= 0
    logits = backbone.logits(hidden[:, :-1][learned])
    loss = torch.nn.functional.cross_entropy(logits, batch.labels_BL[:, 1:][learned])
    return _Naive(loss, torch.stack(latents, 1)[0].unflatten(0, (-1, batch.num_slots)))


def _run(backbone: QwenOmniBackbone, inputs: torch.Tensor, batch: Batch, seen: Any, stop: int) -> torch.Tensor:
    part = seen.take(torch.arange(stop)[None].expand(len(inputs), -1))
    mask = with_self(allowed(part, part, bottleneck="none", training=True))
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL[:, :, :stop], mask_BQK=mask)


def _alternate(contestants: dict[str, Callable[[], torch.Tensor]], backbone: QwenOmniBackbone) -> dict[str, float]:
    """Least seconds of processor time of forward and backward, the contestants taking turns after a warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + 1):
        for name, loss in contestants.items():
            # The naive loop is tens of times slower: fewer turns say enough.
            if name == "naive" and turn > NAIVE_ROUNDS:
                continue
            started = time.process_time()
            loss().backward()
            if turn:
                seconds[name].append(time.process_time() - started)
            backbone.zero_grad(set_to_none=True)
    return {name: min(values) for name, values in seconds.items()}


def _bytes_kept(loss: Callable[[], torch.Tensor], backbone: QwenOmniBackbone) -> int:
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    # What autograd saves stays alive while `kept` does, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = loss()
    del kept
    return sum(storages.values())


def _errors(backbone: QwenOmniBackbone, batch: Batch) -> dict[str, float]:
    naive = _naive(backbone, batch)
    exact, wanted = naive.latents_PKD.detach(), _gradient(naive.loss, backbone)
    figures = {}
    for name, options in ENGINES.items():
        learner = _learner(backbone, options)
        if options["engine"] != "teacher_parallel":
            config = learner.method.unroll
            with torch.no_grad():
                own = unroll(backbone, learner.heads.feedback, batch, config, training=True).latents_BPKD[0]
            figures[f"{name}_latent_error"] = float((own - exact).norm() / exact.norm())
        found = _gradient(learner(batch)["loss"], backbone)
        figures[f"{name}_gradient_error"] = float((found - wanted).norm() / wanted.norm())
    return figures


def _gradient(loss: torch.Tensor, backbone: QwenOmniBackbone) -> torch.Tensor:
    backbone.zero_grad(set_to_none=True)
    loss.backward()
    grads = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
    backbone.zero_grad(set_to_none=True)
    return torch.cat(grads)


@torch.no_grad()
def _sweeps_for(backbone: QwenOmniBackbone, batch: Batch, error: float, *, start: str, carry: bool = True) -> int:
    """Fewest sweeps whose latents, all phases taken together, are within a relative error of the sequential ones."""
    feedback = Feedback(backbone.width)
    exact = unroll(backbone, feedback, batch, UnrollConfig(), training=True).latents_BPKD
    for sweeps in range(2, SLOTS + 1):
        options: dict[str, Any] = {"jacobi_start": start, "jacobi_carry": carry, "jacobi_tolerance": 0.0}
        config = UnrollConfig(engine="jacobi", jacobi_sweeps=sweeps, **options)
        found = unroll(backbone, feedback, batch, config, training=True).latents_BPKD
        if (found - exact).norm() <= error * exact.norm():
            return sweeps
    return SLOTS


def _compare_fitted(batch: Batch) -> dict[str, float]:
    """The same once the latents were drawn to anchors from the clip itself, as training draws them, on this sample."""
    loaded = load_backbone(str(TINY_BASE))
    batch = replace(batch, anchors_BPKD=_anchors(loaded.backbone, batch))
    learner = _learner(loaded.backbone, {"latent_weight": 0.05, "gradient": "kv_only"})
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _ in range(FITTING_STEPS):
        optimizer.zero_grad()
        learner(batch)["loss"].backward()
        optimizer.step()
    optimizer.zero_grad()
    return {
        "latent_loss": float(learner(batch)["latent"]),
        "jacobi_sweeps_for_1e3": _sweeps_for(loaded.backbone, batch, 1e-3, start="trigger"),
        "jacobi_sweeps_for_1e3_from_anchors": _sweeps_for(loaded.backbone, batch, 1e-3, start="anchors"),
        **_compare_rows(loaded, batch),
    }


@torch.no_grad()
def _anchors(backbone: QwenOmniBackbone, batch: Batch) -> torch.Tensor:
    """Five seconds of the clip for each phase, pooled and scaled to root mean square 1: (1, P, K, D)."""
    encoded = embed_batch(backbone, batch).encoded
    per_s = [len(features) / CLIP_S for features in (encoded.visual_ND, encoded.audio_ND)]
    phases = []
    for phase in range(batch.triggers_BP.shape[1]):
        visual, audio = (slice(int(phase * rate), int((phase + 5) * rate)) for rate in per_s)
        pooled = [
            norm_weighted_pool(encoded.visual_ND[visual], NUM_VISUAL),
            norm_weighted_pool(encoded.audio_ND[audio], NUM_AUDIO),
        ]
        phases.append(torch.nn.functional.normalize(torch.cat(pooled), dim=-1) * backbone.width**0.5)
    return torch.stack(phases)[None]


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.3g}")


if __name__ == "__main__":
    main()
