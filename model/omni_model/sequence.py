"""Lays out one sequence as a plan, piece by piece.

A plan is what training teacher-forces, what decoding continues, and what scoring replays. This is the only place that
knows how a conversation is laid out (its wording is that of a `PromptTemplate`); everything after it works on kinds and
indices.
"""

# L = positions of one sequence, S = spans (latent phases) of one sequence.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from omni_model.plan import IGNORE, EncodedClip, Kind, Media, Plan, Span
from omni_model.positions import ClipLayout, layout_clip, place_latents
from omni_model.processing import MERGE, TEMPORAL_PATCH, audible, log_mel, patchify
from omni_model.prompt import PROMPTS, PromptTemplate
from omni_model.vocabulary import Vocabulary, text_ids


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


class PlanBuilder:
    """Lays out one sequence piece by piece."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        media: Media | EncodedClip,
        *,
        template: PromptTemplate = PROMPTS["open"],
    ) -> None:
        self._tokenizer, self._vocabulary, self._media = tokenizer, vocabulary, media
        self.template = template
        """How questions are put and answers written."""
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

    def chat_prompt(self, question: str, options: Sequence[str] = ()) -> PlanBuilder:
        """System turn, then the user's turn with clip and question, then the opening of the assistant's turn.

        `options` are those of a multiple-choice question, which the template may show. Raises `ValueError` for options
        that cannot be shown.
        """
        return self.clip_turn().question_turn(question, options)

    def clip_turn(self) -> PlanBuilder:
        """Everything up to the question: the part that several questions about a clip share."""
        if self.template.system_prompt:
            self._begin_turn("system").text(self.template.system_prompt, Kind.TEMPLATE)._close_turn()
        self._begin_turn("user").clip()
        self._prefix_end, self._prefix_length = self._next, len(self._ids)
        return self

    def question_turn(self, question: str, options: Sequence[str] = ()) -> PlanBuilder:
        """The question with its options and the opening of the answer."""
        self.text(self.template.question(question, options), Kind.QUESTION)
        return self._close_turn()._begin_turn("assistant")

    def new_block(self) -> PlanBuilder:
        """Begin another question behind the same clip: it sees the shared prefix and itself, and counts from there."""
        self._block += 1
        self._next = self._prefix_end
        return self

    def text(self, text: str, kind: Kind, *, learn: bool = False) -> PlanBuilder:
        """Words, tokenised on their own as plain text; `learn` puts them into the text loss."""
        return self.tokens(text_ids(self._tokenizer, text), kind, learn=learn)

    def tokens(self, ids: Sequence[int], kind: Kind, *, learn: bool = False) -> PlanBuilder:
        """Tokens by their ids, one position each."""
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

    def _begin_turn(self, role: str) -> PlanBuilder:
        return self.tokens([self._vocabulary.chat_begin], Kind.TEMPLATE).text(f"{role}\n", Kind.TEMPLATE)

    def _close_turn(self) -> PlanBuilder:
        return self.tokens([self._vocabulary.chat_end], Kind.TEMPLATE).text("\n", Kind.TEMPLATE)

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
