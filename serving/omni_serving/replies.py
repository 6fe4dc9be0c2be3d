"""A model's reply in the shapes of the protocol: one object, or a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from omni_serving.protocol import (
    ChatChunk,
    ChatResponse,
    Choice,
    ChunkChoice,
    Delta,
    LatentPhase,
    Moment,
    ReplyMessage,
    Usage,
)

if TYPE_CHECKING:
    from omni_model.reason import Phase, Reply

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What every object of one completion has in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}


def as_response(reply: Reply, envelope: Envelope) -> ChatResponse:
    """The whole reply as one `chat.completion` object."""
    choice = Choice(
        message=ReplyMessage(content=reply.text),
        answer=reply.answer,
        latent_phases=[_phase(phase) for phase in reply.phases],
        finish_reason=reply.finish_reason,
    )
    return ChatResponse(**envelope.fields(), choices=[choice], usage=_usage(reply))


async def as_events(pending: Awaitable[Reply], envelope: Envelope, *, include_usage: bool) -> AsyncIterator[str]:
    """The reply as server-sent events: role, then each latent phase, then the text, the end, `[DONE]`.

    The first event leaves before the model has answered. The caller turns a failure of `pending` into an
    event of its own: a stream that has begun has no status code left to set.
    """
    yield event(_chunk(envelope, Delta(role="assistant", content="")))
    reply = await pending
    for chunk in _chunks(reply, envelope):
        yield event(chunk)
    if include_usage:
        yield event(ChatChunk(**envelope.fields(), choices=[], usage=_usage(reply)))
    yield DONE


def event(payload: BaseModel | str) -> str:
    """One server-sent event; absent fields are left out."""
    text = payload if isinstance(payload, str) else payload.model_dump_json(exclude_none=True)
    return f"data: {text}\n\n"


def _chunks(reply: Reply, envelope: Envelope) -> Iterator[ChatChunk]:
    for phase in reply.phases:
        yield _chunk(envelope, Delta(), latent_phases=[_phase(phase)])
    yield _chunk(envelope, Delta(content=reply.text))
    yield _chunk(envelope, Delta(), answer=reply.answer, finish_reason=reply.finish_reason)


def _chunk(envelope: Envelope, delta: Delta, **choice: Any) -> ChatChunk:
    return ChatChunk(**envelope.fields(), choices=[ChunkChoice(delta=delta, **choice)])


def _phase(phase: Phase) -> LatentPhase:
    return LatentPhase(
        position=phase.position,
        k=phase.num_visual + phase.num_audio,
        num_visual=phase.num_visual,
        num_audio=phase.num_audio,
        moments=[
            Moment(modality=m.modality, start_s=m.start_s, end_s=m.end_s, similarity=m.similarity)
            for m in phase.moments
        ],
    )


def _usage(reply: Reply) -> Usage:
    return Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
        latent_steps=reply.latent_steps,
    )
