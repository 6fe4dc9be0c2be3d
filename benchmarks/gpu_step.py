"""One latent SFT step of Qwen2.5-Omni-7B's Thinker shape on one GPU: tokens a second, MFU and peak memory by engine.

Needs torch and transformers alone, no Ray and no download: weights are random, the clip is noise. On a machine that has
only these, from the root of the repository:

    PYTHONPATH=platform:model python benchmarks/gpu_step.py

`--size tiny --device cpu` runs the same code anywhere. Without a GPU it says so and prints no figures.

The sample: a clip of 32 s (64 frames of 336 x 308 px, with sound), two phases of 32 + 8 slots, about 5,200 positions.
Trained are LoRA adapters of rank 16 on every linear layer of the language model (`lora`), or the language model and the
audio tower (`full`), with AdamW. Weights, gradients and optimizer states are bfloat16: 8.9 billion weights with float32
states would need more than one GPU has, and the arithmetic of a step is the same; the peak memory is not that of a run
with float32 states. There is no activation checkpointing.

MFU counts what one plain pass has to compute (forward, and backward where weights or what they depend on learn, counted
by torch's flop counter, attention in full), divided by time and by the GPU's dense bfloat16 peak. What an engine
computes in addition earns nothing. The anchor: LoRA SFT of Qwen2.5-7B at 43 % MFU on one H100.
"""

# B = rows, P = phases, K = slots, D = model width.

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.batch import Batch, collate
from omni_model.folder import TINY_BASE, load_backbone
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Kind, PlanBuilder, prepare_media

TURNS, WARM_UP = 5, 2
RANK = 16
ENGINES = ("teacher_parallel", "recurrent", "two_pass", "jacobi")
CLIPS = {"7b": (32, 308, 336), "tiny": (6, 56, 56)}
"""Seconds, height and width of the clip."""
SLOTS = {"7b": (32, 8), "tiny": (4, 2)}
PEAKS_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16 peaks of the SXM forms, as the vendor gives them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="One latent SFT step on one GPU.")
    parser.add_argument("--size", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    figures: dict[str, float | None] = {}
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing is measured (--size tiny --device cpu runs the same code)")
    else:
        device = torch.device(options.device)
        torch.manual_seed(0)
        for mode in ("lora", "full"):
            figures |= {f"{mode}_{name}": value for name, value in _measure(options.size, mode, device).items()}
            gc.collect()  # the model before the next one is made
            torch.cuda.empty_cache()
    print(json.dumps({"bench": "gpu_step", "figures": figures}))


def _measure(size: str, mode: str, device: torch.device) -> dict[str, float | None]:
    backbone, batch = _build(size, device)
    learners = _learners(backbone, size, mode)
    _choose_what_learns(backbone, mode)
    for learner in learners.values():
        learner.to(device=device, dtype=_dtype(device)).train()
    plain = replace(batch, triggers_BP=batch.triggers_BP[:, :0], num_visual=0, num_audio=0, anchors_BPKD=None)
    # One optimizer for all: its states are larger than the model.
    learned = list(dict.fromkeys(p for one in learners.values() for p in one.parameters() if p.requires_grad))
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=device.type == "cuda")
    steps = {name: _step(one, plain if name == "sft" else batch, optimizer) for name, one in learners.items()}
    flops = _count_flops(learners["sft"], plain)
    seconds, peaks_bytes = _alternate(steps, device)
    peak_tflops = _peak_tflops(device)
    figures: dict[str, float | None] = {"positions": float(batch.input_ids_BL.numel())}
    for name in steps:
        if (took_s := seconds.get(name)) is None:
            print(f"{mode}, {name}: does not fit into this GPU")
            figures[f"{name}_tokens_per_s"] = None
            continue
        figures[f"{name}_tokens_per_s"] = round(batch.input_ids_BL.numel() / took_s, 1)
        if name != "sft" and "sft" in seconds:
            figures[f"{name}_vs_sft"] = round(took_s / seconds["sft"], 3)
        if peak_tflops is not None:
            figures[f"{name}_mfu"] = round(flops / took_s / (peak_tflops * 1e12), 4)
            figures[f"{name}_peak_gib"] = round(peaks_bytes[name] / 2**30, 2)
        told = {key.removeprefix(f"{name}_"): value for key, value in figures.items() if key.startswith(f"{name}_")}
        print(f"{mode}, {name}: {told}", flush=True)
    return figures


def _build(size: str, device: torch.device) -> tuple[QwenOmniBackbone, Batch]:
    loaded = load_backbone(str(TINY_BASE))
    backbone = loaded.backbone
    if size == "7b":
        backbone = _random_7b(device)
    clip_s, height_px, width_px = CLIPS[size]
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2 * clip_s, height_px, width_px, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, 16_000 * clip_s).astype(np.float32)
    builder = PlanBuilder(loaded.tokenizer, loaded.vocabulary, prepare_media(frames, sample_fps=2.0, waveform=wave))
    builder.chat_prompt("Which colour is on screen when the low tone sounds?")
    (num_visual, num_audio), phases = SLOTS[size], 2
    offsets = make_method("latent_omni", _options(size)).slot_offsets()
    for start_s in range(phases):
        builder.text("The low tone sounds here, so look here. ", Kind.TEXT, learn=True).latent_span(
            num_visual=num_visual, num_audio=num_audio, offsets=offsets, start_s=start_s, end_s=start_s + 5
        )
    plan = builder.text("The picture is blue. Answer: blue", Kind.TEXT, learn=True).end_turn().build()
    anchors = torch.randn(phases, num_visual + num_audio, backbone.width)
    return backbone, collate([plan], anchors=[anchors]).to(device)


def _random_7b(device: torch.device) -> QwenOmniBackbone:
    """The Thinker of Qwen2.5-Omni-7B with random weights; the sizes are those of its published configuration."""
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": False,
        },
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                       "out_hidden_size": 3584},
        audio_config={"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
                      "output_dim": 3584},
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(_dtype(device))
    try:
        with device:
            return QwenOmniBackbone(Qwen2_5OmniThinkerForConditionalGeneration(config))
    finally:
        torch.set_default_dtype(before)


def _options(size: str, **more: str) -> dict[str, int | str]:
    num_visual, num_audio = SLOTS[size]
    return {"num_visual": num_visual, "num_audio": num_audio, **more}


def _learners(backbone: QwenOmniBackbone, size: str, mode: str) -> dict[str, Learner]:
    """Plain SFT and every engine that this version has; they share the backbone."""
    learners = {"sft": Learner(backbone, make_method("sft"))}
    for engine in ENGINES:
        try:
            method = make_method("latent_omni", _options(size, engine=engine))
        except ValueError as error:
            print(f"{mode}, {engine}: {error}")
            continue
        learners[engine] = Learner(backbone, method)
    return learners


def _choose_what_learns(backbone: QwenOmniBackbone, mode: str) -> None:
    groups = backbone.modules_by_group()
    groups["vision"].requires_grad_(False)
    if mode == "full":
        return
    backbone.requires_grad_(False)
    language = backbone.thinker.model.language_model
    for name, layer in [(n, m) for n, m in language.layers.named_modules() if isinstance(m, nn.Linear)]:
        owner, _, leaf = name.rpartition(".")
        setattr(language.layers.get_submodule(owner), leaf, LowRank(layer))


class LowRank(nn.Module):
    """A frozen linear layer and two thin matrices beside it, which begin by adding nothing."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        like = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.down = nn.Parameter(torch.randn(RANK, base.in_features, **like) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK, **like))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def _step(learner: Learner, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Forward, backward, AdamW."""

    def step() -> None:
        optimizer.zero_grad()  # also what a step that did not fit has left
        learner(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _count_flops(learner: Learner, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        learner(batch)["loss"].backward()
    learner.zero_grad()
    return counter.get_total_flops()


def _alternate(steps: dict[str, Callable[[], None]], device: torch.device) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and greatest memory of each step, in turns; those that do not fit are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks_bytes = dict.fromkeys(steps, 0)
    for turn in range(WARM_UP + TURNS):
        for name in list(seconds):
            try:
                took_s, peak_bytes = _timed(steps[name], device)
            except torch.OutOfMemoryError:
                del seconds[name]
                continue
            if turn >= WARM_UP:
                seconds[name].append(took_s)
                peaks_bytes[name] = max(peaks_bytes[name], peak_bytes)
    return {name: statistics.median(values) for name, values in seconds.items()}, peaks_bytes


def _timed(step: Callable[[], None], device: torch.device) -> tuple[float, int]:
    if device.type == "cpu":
        started_s = time.perf_counter()
        step()
        return time.perf_counter() - started_s, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started_s = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started_s, torch.cuda.max_memory_allocated()


def _peak_tflops(device: torch.device) -> float | None:
    if device.type == "cpu":
        return None
    name = torch.cuda.get_device_name(device)
    with contextlib.suppress(StopIteration):
        return next(peak for part, peak in PEAKS_TFLOPS.items() if part in name)
    print(f"no peak is known for {name}: MFU is left out")
    return None


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


if __name__ == "__main__":
    main()
