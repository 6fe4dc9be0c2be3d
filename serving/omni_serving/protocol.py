"""The chat-completions protocol: what a request may hold, and what a reply holds.

OpenAI's shapes, with three additions: a request may carry `options` (the answers of a multiple-choice
question) and `max_phases`; each choice of a reply carries `answer` and `latent_phases`; and `usage` counts
the latent steps.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

MAX_OPTIONS = 64
"""Options of one question; the template has letters for fewer, and refuses the others in words."""
MAX_OPTION_CHARS = 1000
MAX_PARTS = 64
NOT_OFFERED = "not_offered"
"""The type of the error for a value that would change the answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "temperature": (0,),
    "top_p": (1,),
    "top_k": (-1, 0, 1),
    "min_p": (0,),
    "seed": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
}
"""What clients may send that the server does not do: besides null, the values that ask for nothing."""


class _Strict(BaseModel):
    # A misspelt field that is silently dropped changes the answer and nobody knows why.
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A piece of the question; how long it may be is counted in positions."""

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
    role: str = Field(max_length=32)
    content: list[Part] = Field(max_length=MAX_PARTS)

    @field_validator("content", mode="before")
    @classmethod
    def _text_is_one_part(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(max_length=16)
    model: str | None = Field(default=None, max_length=256)
    """None = the model that is served."""
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of `max_tokens`; it wins."""
    max_phases: int | None = Field(default=None, ge=0)
    options: tuple[Annotated[str, Field(max_length=MAX_OPTION_CHARS)], ...] = Field(default=(), max_length=MAX_OPTIONS)
    """Bounded here; the prompt template says which are no options (empty, equal, more than it has letters for)."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # Of no effect on the answer, and taken.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    # Decoding is greedy, one answer, words only: see `_NEUTRAL`.
    n: Any = None
    best_of: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    stop: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None

    @field_validator(*_NEUTRAL)
    @classmethod
    def _asks_for_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        neutral = _NEUTRAL[str(info.field_name)]
        # To Python True is 1, and to a client it is a mistake.
        if value is None or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
        ):
            return value
        instead = "".join(f" or send {json.dumps(each)}" for each in neutral[:1])
        raise PydanticCustomError(
            NOT_OFFERED,
            "this value would change the answer, and the server gives one answer by greedy decoding; "
            "leave it out{instead}",
            {"instead": instead},
        )

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
