"""What it costs to carry segment clips through every training step, as the authors' code does.

Theirs: the clip of every segment a trajectory looks at is encoded in each step, its features are pooled into that
step's anchors, and its tokens stand in the sequence behind the phase that looked, where nobody may attend to them.
Ours: segments are encoded once, offline; anchors are data, and the sequence holds the full clip, the words and the
latent slots alone. Both run the anchors in one teacher-forced pass and have the same three losses; the vision tower
is frozen in both, the towers encode the full clip in both.

A sample is a quarter of a real one: 16 visual and 25 audio tokens a second (128 to 320 and 25 in the paper's data),
segments of 5 s, 10 slots a phase (40), some 80 tokens of text; the model is a random Thinker, whose towers take about
an eighth of our step's arithmetic, as they do in 7B. The figures are ratios of least CPU times, theirs to ours, beside
those of what has to be computed (torch's flop counter) and of the sequences' lengths.
"""

# B = rows, L = positions, P = phases, K = slots, D = model width, N = tokens of a tower.

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omni_model.batch import Batch, Encoded, MediaBatch, collate, join_media
from omni_model.folder import TINY_BASE, load_backbone
from omni_model.keyvalues import Cache
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.pooling import norm_weighted_pool
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Kind, Media, Plan, PlanBuilder, prepare_media
from omni_model.tiny import TinyConfig, build_tiny

TURNS = 4
NUM_VISUAL, NUM_AUDIO = 8, 2
SEGMENT_S, FRAME_PX, FPS = 5, 112, 2.0
SIZES = TinyConfig(hidden_size=192, num_layers=6, intermediate_size=768, vision_size=160, audio_size=96)
SETTINGS = {"10s_3": (10, 3), "30s_2": (30, 2), "60s_2": (60, 2)}
"""Seconds of the clip and number of segments; the paper's data has clips of up to two minutes, 1 to 3 segments."""
HEADLINE = "30s_2"
OPTIONS = {"num_visual": NUM_VISUAL, "num_audio": NUM_AUDIO, "engine": "teacher_parallel", "bottleneck": "published"}


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name, (clip_s, segments) in SETTINGS.items():
        figures |= {f"{figure}_{name}": round(value, 3) for figure, value in _compare(clip_s, segments).items()}
    figures |= {name.removesuffix(f"_{HEADLINE}"): f for name, f in figures.items() if name.endswith(HEADLINE)}
    print(json.dumps({"bench": "layout", "figures": figures}))


def _compare(clip_s: int, segments: int) -> dict[str, float]:
    sample = Sample.make(clip_s, segments)
    ours, theirs = _our_batch(sample), _their_batch(sample)
    method, towers = make_method("latent_omni", OPTIONS), SegmentTowers(sample.backbone, theirs, len(sample.segments))
    our_learner, their_learner = Learner(sample.backbone, method), Learner(towers, method)
    their_learner.heads = our_learner.heads

    def their_step() -> dict[str, torch.Tensor]:
        towers.encode_once()
        return their_learner(replace(theirs, anchors_BPKD=towers.anchors()))

    least_s, losses = _alternate({"ours": lambda: our_learner(ours), "theirs": their_step}, our_learner)
    arithmetic = {"ours": _flops(lambda: our_learner(ours)), "theirs": _flops(their_step)}
    lengths = {"ours": ours.input_ids_BL.shape[1], "theirs": theirs.input_ids_BL.shape[1]}
    text = ", ".join(f"{who} {lengths[who]} positions, losses {losses[who]}" for who in lengths)
    print(f"{clip_s} s, {segments} segments: {text}", flush=True)
    return {
        "ours_vs_authors_layout": least_s["theirs"] / least_s["ours"],
        "arithmetic_authors_vs_ours": arithmetic["theirs"] / arithmetic["ours"],
        "positions_authors_vs_ours": lengths["theirs"] / lengths["ours"],
    }


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip with its segments, and the model that learns from it."""

    backbone: QwenOmniBackbone
    builder: Callable[[Media], PlanBuilder]
    clip: Media
    segments: list[Media]

    @classmethod
    def make(cls, clip_s: int, segments: int) -> Sample:
        loaded = load_backbone(str(TINY_BASE))
        backbone = QwenOmniBackbone(build_tiny(SIZES, loaded.vocabulary)).train()
        backbone.modules_by_group()["vision"].requires_grad_(False)
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 255, (round(FPS * clip_s), FRAME_PX, FRAME_PX, 3), dtype=np.uint8)
        wave = rng.normal(0, 0.1, 16_000 * clip_s).astype(np.float32)
        return cls(
            backbone=backbone,
            builder=lambda media: PlanBuilder(loaded.tokenizer, loaded.vocabulary, media),
            clip=prepare_media(frames, sample_fps=FPS, waveform=wave),
            segments=[_cut(frames, wave, start_s) for start_s in _starts(clip_s, segments)],
        )


def _starts(clip_s: int, segments: int) -> list[int]:
    return [int(start_s) for start_s in np.linspace(0, clip_s - SEGMENT_S, segments)]


def _cut(frames: np.ndarray, wave: np.ndarray, start_s: int) -> Media:
    first, last = round(FPS * start_s), round(FPS * (start_s + SEGMENT_S))
    sound = wave[16_000 * start_s : 16_000 * (start_s + SEGMENT_S)]
    return prepare_media(frames[first:last], sample_fps=FPS, waveform=sound)


def _our_batch(sample: Sample) -> Batch:
    """Anchors as the offline stage has left them."""
    builder = _prompt(sample)
    for order in range(len(sample.segments)):
        _phase(builder, order)
    with torch.no_grad():
        anchors = torch.cat([_pool(sample.backbone.encode(join_media([media])))[None] for media in sample.segments])
    return collate([_answer(builder).build()], anchors=[anchors])


def _their_batch(sample: Sample) -> Batch:
    """Every phase is followed by its segment's clip; the towers get the full clip and all segments."""
    pieces = [_prompt(sample)]
    for order, media in enumerate(sample.segments):
        _phase(pieces[-1], order)
        pieces += [sample.builder(media).clip(), sample.builder(sample.clip)]
    _answer(pieces[-1])
    batch = collate([_join([piece.build() for piece in pieces])])
    return replace(batch, media=join_media([sample.clip, *sample.segments]))


def _prompt(sample: Sample) -> PlanBuilder:
    return sample.builder(sample.clip).chat_prompt("Which colour is on screen when the low tone sounds?")


def _phase(builder: PlanBuilder, order: int) -> None:
    offsets = make_method("latent_omni", OPTIONS).slot_offsets()
    builder.text("The low tone sounds near the end of this part, so look there. " * 2, Kind.TEXT, learn=True)
    builder.latent_span(
        num_visual=NUM_VISUAL, num_audio=NUM_AUDIO, offsets=offsets, start_s=SEGMENT_S * order,
        end_s=SEGMENT_S * (order + 1),
    )  # fmt: skip


def _answer(builder: PlanBuilder) -> PlanBuilder:
    return builder.text("The picture is blue. Answer: blue", Kind.TEXT, learn=True).end_turn()


def _join(plans: list[Plan]) -> Plan:
    """Plans one behind the other. Of a segment's tokens no time is told: the sync loss reads the full clip's."""
    length = position = visual = audio = 0
    joined: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("input_ids", "kinds", "labels", "position_ids", "source", "times_s", "blocks")
    }
    spans = []
    for index, plan in enumerate(plans):
        is_visual, is_audio = plan.kinds == Kind.VISUAL, plan.kinds == Kind.AUDIO
        parts = {name: getattr(plan, name) for name in joined}
        parts["position_ids"] = plan.position_ids + position
        parts["source"] = plan.source + visual * is_visual + audio * is_audio
        if index:
            parts["times_s"] = torch.full_like(plan.times_s, float("nan"))
        for name, part in parts.items():
            joined[name].append(part)
        spans += [replace(span, trigger=span.trigger + length) for span in plan.spans]
        length, position = length + len(plan), position + plan.next_position
        visual, audio = visual + int(is_visual.sum()), audio + int(is_audio.sum())
    whole = {name: torch.cat(parts, dim=-1) for name, parts in joined.items()}
    return replace(plans[0], **whole, spans=tuple(spans), next_position=position)


class SegmentTowers(nn.Module):
    """A backbone that encodes a batch with its segments once a step, and hides the segments' tokens from all."""

    def __init__(self, backbone: QwenOmniBackbone, batch: Batch, segments: int) -> None:
        super().__init__()
        self.width = backbone.width
        self._backbone, self._batch, self._segments = backbone, batch, segments
        media_BL = (batch.kinds_BL == Kind.VISUAL) | (batch.kinds_BL == Kind.AUDIO)
        self._hidden_L = (media_BL & batch.times_s_BL.isnan())[0]
        self.encode_once()

    def encode_once(self) -> None:
        """Run the towers over the full clip and the segments; `encode` then gives what they made."""
        media = self._batch.media
        assert isinstance(media, MediaBatch)
        self._encoded = self._backbone.encode(media)

    def anchors(self) -> torch.Tensor:
        """Anchors of this step: (1, P, K, D), without gradient."""
        visual = self._of_segments(self._encoded.visual_ND, Kind.VISUAL)
        audio = self._of_segments(self._encoded.audio_ND, Kind.AUDIO)
        return torch.stack([_pool(Encoded(visual_ND=v, audio_ND=a)) for v, a in zip(visual, audio, strict=True)])[None]

    def _of_segments(self, features_ND: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, ...]:
        """The features of each segment; they come after the full clip's and are equally many."""
        each = int((self._hidden_L & (self._batch.kinds_BL[0] == kind)).sum()) // self._segments
        return features_ND[-each * self._segments :].split(each)

    def encode(self, media: MediaBatch) -> Encoded:
        return self._encoded

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self._backbone.embed(input_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._backbone.logits(hidden)

    def run(
        self,
        inputs_BQD: torch.Tensor,
        *,
        position_ids_3BQ: torch.Tensor,
        mask_BQK: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        itself = torch.eye(len(self._hidden_L), dtype=torch.bool)
        mask = mask_BQK & (~self._hidden_L | itself)
        return self._backbone.run(inputs_BQD, position_ids_3BQ=position_ids_3BQ, mask_BQK=mask, cache=cache)

    def modules_by_group(self) -> dict[str, nn.Module]:
        return self._backbone.modules_by_group()


def _pool(encoded: Encoded) -> torch.Tensor:
    """The anchors of one segment: (K, D)."""
    visual = norm_weighted_pool(encoded.visual_ND.detach(), NUM_VISUAL)
    return torch.cat([visual, norm_weighted_pool(encoded.audio_ND.detach(), NUM_AUDIO)])


def _flops(step: Callable[[], dict[str, torch.Tensor]]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()["loss"].backward()
    return counter.get_total_flops()


def _alternate(
    steps: dict[str, Callable[[], dict[str, torch.Tensor]]], learner: Learner
) -> tuple[dict[str, float], dict[str, str]]:
    """Least CPU seconds of forward and backward, the two taking turns after a warm-up; and what their losses were.

    One thread computes, so CPU time is step time, but for what else the machine is doing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, str] = {}
    for turn in range(TURNS + 1):
        for name, step in steps.items():
            started_s = time.process_time()
            terms = step()
            terms["loss"].backward()
            if turn:
                seconds[name].append(time.process_time() - started_s)
            losses[name] = ", ".join(f"{term} {float(terms[term]):.3f}" for term in ("text", "latent", "sync"))
            learner.zero_grad(set_to_none=True)
    return {name: min(values) for name, values in seconds.items()}, losses


if __name__ == "__main__":
    main()
