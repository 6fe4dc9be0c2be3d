"""The plan of one sequence: every position's token, kind, position ids and label, in order.

A plan is what training teacher-forces, what decoding continues, and what scoring replays. It is the only place that
knows how a conversation is laid out; everything after it works on kinds and indices.
"""

# L = positions of one sequence, S = spans (latent phases) of one sequence.

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from omni_model.positions import ClipLayout, layout_clip, place_latents
from omni_model.processing import MERGE, TEMPORAL_PATCH, audible, log_mel, num_audio_tokens, patchify
from omni_model.vocabulary import Vocabulary

IGNORE = -100
"""Label of a position whose token is not learned."""


class Kind(IntEnum):
    """What stands at a position. Masks, losses and probes speak in kinds, never in token ids."""

    PAD = 0
    TEMPLATE = 1
    MARKER = 2
    VISUAL = 3
    AUDIO = 4
    QUESTION = 5
    TEXT = 6
    TRIGGER = 7
    LATENT_VISUAL = 8
    LATENT_AUDIO = 9
    STOP = 10


@dataclass(frozen=True, kw_only=True)
class Media:
    """One clip ready for the towers, with the clock of its tokens."""

    patches: torch.Tensor
    """float32 (patches, 1176)"""
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    mel: torch.Tensor | None
    """float32 (128, mel frames), or None for a clip without sound"""

    @property
    def num_visual_tokens(self) -> int:
        t, h, w = self.grid_thw
        return t * h * w // MERGE**2

    @property
    def num_audio_tokens(self) -> int:
        return 0 if self.mel is None else num_audio_tokens(self.mel.shape[1])


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """One clip that has been through the towers, with the clock of its tokens."""

    visual_ND: torch.Tensor
    audio_ND: torch.Tensor
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float

    @property
    def num_visual_tokens(self) -> int:
        return len(self.visual_ND)

    @property
    def num_audio_tokens(self) -> int:
        return len(self.audio_ND)


def prepare_media(frames: np.ndarray, *, sample_fps: float, waveform: np.ndarray | None) -> Media:
    """Turn resized frames, uint8 (F, H, W, 3), and a 16 kHz waveform into tower inputs.

    A sound of less than 21 ms, and be it empty, counts as followed by silence; None is a clip without sound.
    """
    patches, grid = patchify(frames)
    t, h, w = grid.tolist()
    return Media(
        patches=patches,
        grid_thw=(t, h, w),
        seconds_per_grid=TEMPORAL_PATCH / sample_fps,
        mel=None if waveform is None else log_mel(audible(waveform)),
    )


@dataclass(frozen=True, kw_only=True)
class Span:
    """One latent phase: a trigger, then visual and audio slots, then the forced stop."""

    trigger: int
    """Index of the trigger; slot k (1-based) stands at trigger + k."""
    num_visual: int
    num_audio: int
    start_s: float
    end_s: float

    @property
    def num_slots(self) -> int:
        return self.num_visual + self.num_audio


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One laid-out sequence."""

    input_ids: torch.Tensor
    """int64 (L,)"""
    kinds: torch.Tensor
    """int64 (L,) of `Kind`"""
    labels: torch.Tensor
    """int64 (L,): the token itself where it is learned (predicted at L - 1), else IGNORE"""
    position_ids: torch.Tensor
    """int64 (3, L)"""
    source: torch.Tensor
    """int64 (L,): row of the tower output that a visual or audio token takes, else -1"""
    times_s: torch.Tensor
    """float32 (L,): when a visual or audio token begins, else NaN"""
    blocks: torch.Tensor
    """int64 (L,): 0 for the shared prefix; j for the j-th of several questions packed behind it"""
    spans: tuple[Span, ...]
    media: Media | EncodedClip
    prefix_length: int
    """Positions before the question, which other questions about the same clip have too."""
    next_position: int
    """The position id with which a continuation begins."""

    def __len__(self) -> int:
        return len(self.input_ids)


class PlanBuilder:
    """Lays out one sequence piece by piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, media: Media | EncodedClip) -> None:
        self._tokenizer, self._vocabulary, self._media = tokenizer, vocabulary, media
        self._ids: list[int] = []
        self._kinds: list[int] = []
        self._labels: list[int] = []
        self._positions: list[tuple[int, int, int]] = []
        self._source: list[int] = []
        self._times_s: list[float] = []
        self._blocks: list[int] = []
        self._spans: list[Span] = []
        self._next = 0
        self._block = 0
        self._prefix_end = 0
        self._prefix_length = 0

    def chat_prompt(self, question: str, *, system_prompt: str = "") -> PlanBuilder:
        """System turn, then the user's turn with clip and question, then the opening of the assistant's turn."""
        return self.clip_turn(system_prompt=system_prompt).question_turn(question)

    def clip_turn(self, *, system_prompt: str = "") -> PlanBuilder:
        """Everything up to the question: the part that several questions about a clip share."""
        if system_prompt:
            self.text("<|im_start|>system\n", Kind.TEMPLATE)
            self.text(f"{system_prompt}<|im_end|>\n", Kind.TEMPLATE)
        self.text("<|im_start|>user\n", Kind.TEMPLATE)
        self.clip()
        self._prefix_end, self._prefix_length = self._next, len(self._ids)
        return self

    def question_turn(self, question: str) -> PlanBuilder:
        """The question and the opening of the answer."""
        self.text(question, Kind.QUESTION)
        return self.text("<|im_end|>\n<|im_start|>assistant\n", Kind.TEMPLATE)

    def new_block(self) -> PlanBuilder:
        """Begin another question behind the same clip: it sees the shared prefix and itself, and counts from there."""
        self._block += 1
        self._next = self._prefix_end
        return self

    def text(self, text: str, kind: Kind, *, learn: bool = False) -> PlanBuilder:
        """Words, tokenised on their own; `learn` puts them into the text loss."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ids:
            self._append(token, kind, self._step(), learn=learn)
        return self

    def end_turn(self, *, learn: bool = True) -> PlanBuilder:
        """The end of the assistant's turn."""
        self._append(self._vocabulary.chat_end, Kind.TEXT, self._step(), learn=learn)
        return self

    def clip(self) -> PlanBuilder:
        """The audio-visual block: begin markers, interleaved tokens, end markers."""
        media, v = self._media, self._vocabulary
        layout = layout_clip(
            grid_thw=media.grid_thw,
            merge=MERGE,
            seconds_per_grid=media.seconds_per_grid,
            num_audio=media.num_audio_tokens,
        )
        begin, end = self._next, self._next + 1 + layout.end_offset
        has_audio = media.num_audio_tokens > 0
        # Both begin markers share one id, and both end markers.
        for token in (v.vision_begin, v.audio_begin)[: 1 + has_audio]:
            self._append(token, Kind.MARKER, _same(begin))
        self._extend_with_clip(layout, begin + 1)
        for token in (v.audio_end, v.vision_end)[1 - has_audio :]:
            self._append(token, Kind.MARKER, _same(end))
        self._next = end + 1
        return self

    def _extend_with_clip(self, layout: ClipLayout, base: int) -> None:
        v, is_audio = self._vocabulary, layout.is_audio
        times_s = torch.empty(len(is_audio))
        times_s[is_audio] = layout.audio_times_s[layout.source[is_audio]]
        times_s[~is_audio] = layout.visual_times_s[layout.source[~is_audio]]
        self._ids += torch.where(is_audio, v.audio, v.video).tolist()
        self._kinds += torch.where(is_audio, int(Kind.AUDIO), int(Kind.VISUAL)).tolist()
        self._labels += [IGNORE] * len(is_audio)
        self._positions += map(tuple, (layout.offsets + base).T.tolist())
        self._source += layout.source.tolist()
        self._times_s += times_s.tolist()
        self._blocks += [self._block] * len(is_audio)

    def latent_span(
        self,
        *,
        num_visual: int,
        num_audio: int,
        offsets: tuple[torch.Tensor, int],
        start_s: float,
        end_s: float,
    ) -> PlanBuilder:
        """A phase: the trigger (learned, since the model decides to look), K slots and the stop (forced, not learned).

        `offsets` are the slots' position ids after the trigger and the stop's, as `latent_offsets` gives them.
        """
        v = self._vocabulary
        self._spans.append(
            Span(
                trigger=len(self._ids),
                num_visual=num_visual,
                num_audio=num_audio,
                start_s=start_s,
                end_s=end_s,
            )
        )
        self._append(v.trigger, Kind.TRIGGER, self._step(), learn=True)
        slot_offsets, stop = offsets
        positions = place_latents(slot_offsets, self._next)
        kinds = [Kind.LATENT_VISUAL] * num_visual + [Kind.LATENT_AUDIO] * num_audio
        for k, kind in enumerate(kinds):
            self._append(v.latent, kind, tuple(positions[:, k].tolist()))
        self._next += stop
        self._append(v.stop, Kind.STOP, self._step())
        return self

    def build(self) -> Plan:
        """The finished plan."""
        return Plan(
            input_ids=torch.tensor(self._ids),
            kinds=torch.tensor(self._kinds),
            labels=torch.tensor(self._labels),
            position_ids=torch.tensor(self._positions).T.contiguous(),
            source=torch.tensor(self._source),
            times_s=torch.tensor(self._times_s),
            blocks=torch.tensor(self._blocks),
            spans=tuple(self._spans),
            media=self._media,
            prefix_length=self._prefix_length,
            next_position=self._next,
        )

    def _step(self) -> tuple[int, int, int]:
        position = _same(self._next)
        self._next += 1
        return position

    def _append(
        self,
        token: int,
        kind: Kind,
        position: tuple[int, int, int],
        *,
        learn: bool = False,
    ) -> None:
        self._ids.append(token)
        self._kinds.append(int(kind))
        self._labels.append(token if learn else IGNORE)
        self._positions.append(position)
        self._source.append(-1)
        self._times_s.append(float("nan"))
        self._blocks.append(self._block)


def _same(position: int) -> tuple[int, int, int]:
    return position, position, position
