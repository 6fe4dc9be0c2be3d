"""The chat-completions protocol: what a request may hold, and what a reply holds.

OpenAI's shapes, with three additions: a request may carry `options` (the answers of a multiple-choice
question) and `max_phases`; each choice of a reply carries `answer` and `latent_phases`; and `usage` counts
the latent steps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Strict(BaseModel):
    # A misspelt field that is silently dropped changes the answer and nobody knows why.
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class VideoUrl(_Strict):
    url: str


class VideoUrlPart(_Strict):
    type: Literal["video_url"]
    video_url: VideoUrl


class VideoPart(_Strict):
    """The short form that chat templates use."""

    type: Literal["video"]
    video: str


Part = Annotated[TextPart | VideoUrlPart | VideoPart, Field(discriminator="type")]


class Message(_Strict):
    role: str
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message]
    model: str | None = None
    """None = the model that is served."""
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`; it wins."""
    max_phases: int | None = Field(default=None, ge=0)
    options: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    # Decoding is greedy. Clients send these by default, so they are taken and have no effect.
    temperature: Any = None
    top_p: Any = None
    seed: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    user: Any = None
    metadata: Any = None
    store: Any = None

    @field_validator("stream_options", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return {} if value is None else value


class Moment(BaseModel):
    """A stretch of the clip that the latents of a phase are nearest to."""

    modality: str
    start_s: float
    end_s: float
    similarity: float
    """Cosine similarity, -1 to 1."""


class LatentPhase(BaseModel):
    """One time the model went back to look and listen."""

    position: int
    """Index of the phase's trigger among the generated positions."""
    k: int
    """Latent steps of the phase, `num_visual + num_audio`."""
    num_visual: int
    num_audio: int
    moments: list[Moment]


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: ReplyMessage
    answer: str
    """The answer alone, as evaluation reads it from the text."""
    latent_phases: list[LatentPhase]
    finish_reason: str
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latent_steps: int


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    answer: str | None = None
    latent_phases: list[LatentPhase] | None = None
    finish_reason: str | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "latentomni"
    method: str
    """The post-training method of the model, such as `sft` or `latent_omni`."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]
