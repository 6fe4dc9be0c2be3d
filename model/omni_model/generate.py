"""The one decode loop, for every method, batched: words, then a latent phase when the model asks for one, then words.

Greedy. A row may be in slot 3 of a phase while its neighbour writes words and a third has finished. A method that
learns with parallel sweeps decodes with them: a phase is then one turn of the loop, in which the other rows wait.
"""

# B = rows, K = slots, D = model width, V = vocabulary, L = prompt length.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from omni_model.backbone import Backbone
from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.events import Event, LatentOverride, Rollout
from omni_model.feedback import media_scale
from omni_model.heads import Heads
from omni_model.masks import Seen, look_at
from omni_model.methods.base import Method
from omni_model.phase import Phase
from omni_model.positions import place_latents
from omni_model.prefix import feed_rows
from omni_model.sequence import Kind, Plan
from omni_model.stream import Stream
from omni_model.vocabulary import Vocabulary


@dataclass
class _Row:
    """Where one row stands."""

    order: int
    """Sequence index of the next position."""
    next_id: int
    """Position id with which the next word begins."""
    phase: int = -1
    slot: int = -1
    """Of the phase under way: the next slot to feed; -1 outside a phase."""
    slot_ids: torch.Tensor | None = None
    stop_id: int = 0
    new_tokens: int = 0
    after_trigger: bool = False
    done: bool = False
    finish: Literal["stop", "length"] = "length"
    events: list[Event] = field(default_factory=list)

    @property
    def opens(self) -> bool:
        """Whether the trigger is the last thing that was fed."""
        return self.slot == 0 and not self.done


@torch.inference_mode()
def generate(
    backbone: Backbone,
    heads: Heads,
    method: Method,
    vocabulary: Vocabulary,
    prompts: Sequence[Plan],
    *,
    max_new_tokens: int = 64,
    max_phases: int = 4,
    override: LatentOverride | None = None,
    hide_latents: bool = False,
    device: torch.device | str = "cpu",
) -> list[Rollout]:
    """Continue prompts greedily.

    `max_new_tokens` counts chosen tokens (triggers included, slots and stops not). After `max_phases` phases the
    trigger is banned. Batching changes nothing: a row's result is that of the row alone. With an `override` slots are
    made one by one, because each is to follow from what was fed in place of the one before it; with `hide_latents`
    words do not see them. Prompts about one and the same media object share its clip, which is run once. Raises
    `ValueError` for prompts that hold latent phases or packed questions.
    """
    if any(prompt.spans or bool(prompt.blocks.any()) for prompt in prompts):
        raise ValueError("a prompt holds one question and no latent phase; lay it out with PlanBuilder.chat_prompt")
    batch = collate(prompts, share_clips=True).to(device)
    stream = Stream(backbone, bottleneck=method.unroll.answering_bottleneck, training=False, hide_latents=hide_latents)
    inputs = embed_batch(backbone, batch).inputs_BLD
    media = (batch.kinds_BL == Kind.VISUAL) | (batch.kinds_BL == Kind.AUDIO)
    scale_B = media_scale(inputs, media)
    state_BD = _feed_prompts(stream, batch, inputs)
    rows = [_Row(order=len(p), next_id=p.next_position) for p in prompts]
    decoder = _Decoder(backbone, heads, method, vocabulary, max_new_tokens, max_phases, override)
    in_parallel = method.unroll.engine == "jacobi" and override is None
    while True:
        if in_parallel and any(row.opens for row in rows):
            _feed_phases(stream, heads, method, rows, state_BD, scale_B)
        fed = decoder.choose(rows, state_BD, scale_B)
        if all(row.done for row in rows):
            break
        state_BD = stream.feed(fed.inputs_BD[:, None], fed.position_ids_3B[:, :, None], fed.seen)[:, 0]
    return [Rollout(events=tuple(row.events), finish_reason=row.finish) for row in rows]


def _feed_prompts(stream: Stream, batch: Batch, inputs: torch.Tensor) -> torch.Tensor:
    """Hidden state at the end of every prompt: (B, D)."""
    rest_BN, hidden = feed_rows(stream, batch, inputs, look_at(batch.kinds_BL, batch.blocks_BL))
    last_B = (rest_BN >= 0).sum(1) - 1
    return hidden[torch.arange(len(last_B), device=hidden.device), last_B]


def _feed_phases(
    stream: Stream, heads: Heads, method: Method, rows: list[_Row], state_BD: torch.Tensor, scale_B: torch.Tensor
) -> None:
    """Find and feed all slots of the rows whose trigger was fed last; the others wait."""
    device, count = state_BD.device, method.num_visual + method.num_audio
    opens_B = torch.tensor([row.opens for row in rows], device=device)
    order_B1 = torch.tensor([row.order for row in rows], device=device)[:, None]
    index_BK = torch.where(opens_B[:, None], order_B1 + torch.arange(count, device=device), -1)
    kinds_K = torch.tensor([Kind.LATENT_VISUAL] * method.num_visual + [Kind.LATENT_AUDIO] * method.num_audio)
    new = Seen(
        index=index_BK,
        kinds=torch.where(index_BK < 0, int(Kind.PAD), kinds_K.to(device)),
        after_trigger=opens_B[:, None].expand(-1, count),
        blocks=torch.zeros_like(index_BK),
    )
    nowhere = torch.zeros(3, count, dtype=torch.long)
    places = [row.slot_ids if row.opens and row.slot_ids is not None else nowhere for row in rows]
    position_ids_3BK = torch.stack(places, 1).to(device)
    phase = Phase(
        slots=stream.piece(position_ids_3BK, new),
        state_BD=state_BD,
        present_B=opens_B,
        feedback=heads.feedback,
        scale_B=scale_B,
    )
    unrolling = method.unroll
    latents_BKD = phase.by_sweeps(
        passes=unrolling.jacobi_sweeps, tolerance=unrolling.jacobi_tolerance, carry=unrolling.jacobi_carry
    )
    latents_BKD = phase.follow(latents_BKD)
    stream.feed(latents_BKD, position_ids_3BK, new)
    for row, latents_KD in zip(rows, latents_BKD, strict=True):
        if row.opens:
            _record_phase(row, latents_KD)


def _record_phase(row: _Row, latents_KD: torch.Tensor) -> None:
    assert row.slot_ids is not None
    for slot, vector in enumerate(latents_KD):
        position = _triple(row.slot_ids[:, slot])
        row.events.append(Event(type="latent", position_ids=position, vector=vector.clone(), phase=row.phase))
    row.slot, row.order = len(latents_KD), row.order + len(latents_KD)


@dataclass(frozen=True, kw_only=True)
class _Fed:
    inputs_BD: torch.Tensor
    position_ids_3B: torch.Tensor
    seen: Seen


@dataclass(frozen=True)
class _Decoder:
    """Chooses what each row is fed next: a slot's vector, a forced stop, or the likeliest word."""

    backbone: Backbone
    heads: Heads
    method: Method
    vocabulary: Vocabulary
    max_new_tokens: int
    max_phases: int
    override: LatentOverride | None

    def choose(self, rows: list[_Row], state_BD: torch.Tensor, scale_B: torch.Tensor) -> _Fed:
        """Advance every row by one position."""
        tokens, logps = self._likeliest(rows, state_BD)
        own_BD = self.heads.feedback(state_BD, scale_B)
        vectors_BD = self._overridden(rows, own_BD)
        ids: list[int] = []
        kinds: list[Kind] = []
        positions: list[tuple[int, int, int]] = []
        for i, row in enumerate(rows):
            if not row.done and row.slot < 0 and row.new_tokens >= self.max_new_tokens:
                row.done = True
            if row.done:
                step = (self.vocabulary.pad, Kind.PAD, (0, 0, 0))
            elif 0 <= row.slot < self._num_slots:
                step = self._feed_slot(row, vectors_BD[i])
            elif row.slot == self._num_slots:
                step = self._force_stop(row)
            else:
                step = self._take_token(row, tokens[i], logps[i])
            ids.append(step[0])
            kinds.append(step[1])
            positions.append(step[2])
        return self._feed(rows, ids, kinds, positions, vectors_BD)

    @property
    def _num_slots(self) -> int:
        return self.method.num_visual + self.method.num_audio

    def _likeliest(self, rows: list[_Row], state_BD: torch.Tensor) -> tuple[list[int], list[float]]:
        """Of every row; fetched together, because each fetch makes a GPU wait."""
        v = self.vocabulary
        logits = self.backbone.logits(state_BD).float()
        # Before anything is banned: the log-probability that training and scoring give the word.
        logp_BV = torch.log_softmax(logits, -1)
        # Placeholders and media tokens mean nothing when written; a trigger does while phases are left.
        banned = [v.latent, v.stop, v.audio, v.video, v.image, v.audio_begin, v.audio_end]
        logits[:, [*banned, v.vision_begin, v.vision_end, v.chat_begin]] = float("-inf")
        spent = [not self.method.has_phases or row.phase + 1 >= self.max_phases for row in rows]
        logits[torch.tensor(spent, device=logits.device), v.trigger] = float("-inf")
        token_B = logits.argmax(-1)
        return token_B.tolist(), logp_BV.gather(1, token_B[:, None])[:, 0].tolist()

    def _overridden(self, rows: list[_Row], own_BD: torch.Tensor) -> torch.Tensor:
        if self.override is None:
            return own_BD
        vectors_BD = own_BD.clone()
        for phase, slot in {(r.phase, r.slot) for r in rows if 0 <= r.slot < self._num_slots and not r.done}:
            there = [i for i, r in enumerate(rows) if (r.phase, r.slot) == (phase, slot)]
            vectors_BD[there] = self.override(phase, slot, own_BD)[there].to(own_BD.dtype)
        return vectors_BD

    def _feed_slot(self, row: _Row, vector: torch.Tensor) -> tuple[int, Kind, tuple[int, int, int]]:
        assert row.slot_ids is not None
        position = _triple(row.slot_ids[:, row.slot])
        row.events.append(Event(type="latent", position_ids=position, vector=vector.clone(), phase=row.phase))
        kind = Kind.LATENT_VISUAL if row.slot < self.method.num_visual else Kind.LATENT_AUDIO
        row.slot += 1
        return self.vocabulary.latent, kind, position

    def _force_stop(self, row: _Row) -> tuple[int, Kind, tuple[int, int, int]]:
        position = row.stop_id, row.stop_id, row.stop_id
        row.events.append(Event(type="forced", position_ids=position, token=self.vocabulary.stop, phase=row.phase))
        row.slot, row.next_id = -1, row.stop_id + 1
        return self.vocabulary.stop, Kind.STOP, position

    def _take_token(self, row: _Row, token: int, logp: float) -> tuple[int, Kind, tuple[int, int, int]]:
        if token in (self.vocabulary.chat_end, self.vocabulary.pad):
            row.done, row.finish = True, "stop"
            return self.vocabulary.pad, Kind.PAD, (0, 0, 0)
        position = row.next_id, row.next_id, row.next_id
        row.new_tokens += 1
        row.next_id += 1
        opens = token == self.vocabulary.trigger
        if opens:
            self._open_phase(row)
        phase = row.phase if opens else -1
        row.events.append(Event(type="token", position_ids=position, token=token, logp=logp, phase=phase))
        return token, Kind.TRIGGER if opens else Kind.TEXT, position

    def _open_phase(self, row: _Row) -> None:
        offsets, stop = self.method.slot_offsets()
        row.phase, row.slot, row.after_trigger = row.phase + 1, 0, True
        row.slot_ids, row.stop_id = place_latents(offsets, row.next_id), row.next_id + stop

    def _feed(
        self,
        rows: list[_Row],
        ids: list[int],
        kinds: list[Kind],
        positions: list[tuple[int, int, int]],
        vectors_BD: torch.Tensor,
    ) -> _Fed:
        device = vectors_BD.device
        kinds_B = torch.tensor([int(k) for k in kinds], device=device)
        latent_B1 = ((kinds_B == Kind.LATENT_VISUAL) | (kinds_B == Kind.LATENT_AUDIO))[:, None]
        words_BD = self.backbone.embed(torch.tensor(ids, device=device))
        order = [-1 if kind == Kind.PAD else row.order for row, kind in zip(rows, kinds, strict=True)]
        for row, index in zip(rows, order, strict=True):
            row.order += index >= 0
        return _Fed(
            inputs_BD=torch.where(latent_B1, vectors_BD.to(words_BD.dtype), words_BD),
            position_ids_3B=torch.tensor(positions, device=device).T.contiguous(),
            seen=Seen(
                index=torch.tensor(order, device=device)[:, None],
                kinds=kinds_B[:, None],
                after_trigger=torch.tensor([r.after_trigger for r in rows], device=device)[:, None],
                blocks=torch.zeros(len(rows), 1, dtype=torch.long, device=device),
            ),
        )


def _triple(ids: torch.Tensor) -> tuple[int, int, int]:
    t, h, w = ids.tolist()
    return t, h, w
