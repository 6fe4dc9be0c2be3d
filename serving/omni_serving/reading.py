"""From the bytes of a request to one question about one clip; whatever does not fit is refused in words."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.protocol import NOT_OFFERED, ChatRequest, Message, TextPart, VideoPart, VideoUrlPart
from omni_serving.uploads import Upload

_MAX_QUOTED_CHARS = 100
_SEND_A_VIDEO = (
    'add a part {"type": "video_url", "video_url": {"url": "..."}} to the user message, where url is a file '
    "in a folder that the server allows (a path or file://...), or data:video/mp4;base64,..."
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far one answer may go. Requests with equal limits can share a model call."""

    max_new_tokens: int
    max_phases: int


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question about one clip, before the clip is fetched."""

    question: str
    video_url: str
    options: tuple[str, ...]


def parse_request(body: bytes) -> ChatRequest:
    """The body as a `ChatRequest`; `RequestError` names the first field that is wrong."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False)[0]) from None


def read_prompt(request: ChatRequest) -> Prompt:
    """The one user message as a question and the address of its clip; `RequestError` where there is none."""
    message = _only_user_message(request.messages)
    texts = [part.text.strip() for part in message.content if isinstance(part, TextPart)]
    question = "\n".join(text for text in texts if text)
    if not question:
        raise RequestError(
            'there is no question: add a part {"type": "text", "text": "..."} to the user message',
            code="no_question",
            param="messages",
        )
    return Prompt(question=question, video_url=_only_video(message), options=request.options)


def clip_source(prompt: Prompt, upload: Upload) -> Path | str:
    """Where the clip is: the file of the body's data URI, or the address that the request names.

    `RequestError` for a data URI that stands anywhere but in the video part.
    """
    url = prompt.video_url.strip()
    if upload.clip is not None and url == upload.reference:
        return upload.clip
    if upload.clip is not None:
        raise RequestError(
            "there is a data URI outside the video part: send it as the video, or leave it out",
            code="bad_data_uri",
            param="messages",
        )
    if url.lower().startswith("data:"):
        raise RequestError(
            "a data URI must have the form data:video/mp4;base64,...", code="bad_data_uri", param="messages"
        )
    return url


def read_limits(request: ChatRequest, config: ServeConfig) -> Limits:
    """The request's limits, or the server's where it names none; `RequestError` above the server's."""
    asked_tokens = request.max_completion_tokens or request.max_tokens
    return Limits(
        max_new_tokens=_within("max_tokens", asked_tokens, config.max_new_tokens),
        max_phases=_within("max_phases", request.max_phases, config.max_phases),
    )


def check_model(request: ChatRequest, served: str) -> None:
    """Refuse a request for another model than the one that is served."""
    if request.model in (None, served):
        return
    raise RequestError(
        f"there is no model {request.model!r} here; this server has {served!r} (see /v1/models)",
        code="model_not_found",
        status=404,
        param="model",
    )


def _explain(problem: ErrorDetails) -> RequestError:
    path = _dotted(problem["loc"])
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", problem["msg"])
        return RequestError(f"the body is not valid JSON: {reason}", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        return RequestError(_unknown_field(problem["loc"]), code="unknown_field", param=path)
    if problem["type"] == "union_tag_invalid":
        tag = str(problem.get("ctx", {}).get("tag"))[:_MAX_QUOTED_CHARS]
        message = f"{path}: no parts of type {tag!r} are taken; send 'text', 'video_url' or 'video'"
        return RequestError(message, code="unknown_part", param=path)
    if problem["type"] == "union_tag_not_found":
        message = f"{path}: a part needs a 'type': 'text', 'video_url' or 'video'"
        return RequestError(message, code="unknown_part", param=path)
    if problem["type"] == NOT_OFFERED:
        return RequestError(f"{path}: {problem['msg']}", code="unsupported_value", param=path)
    where = f"{path}: " if path else "the body: "
    return RequestError(where + problem["msg"][0].lower() + problem["msg"][1:], param=path or None)


def _dotted(loc: tuple[int | str, ...]) -> str:
    """A pydantic location as a client would write it: `messages[0].content[1].video_url`."""
    text = ""
    for i, piece in enumerate(loc):
        if isinstance(piece, int):
            text += f"[{piece}]"
        elif i == 0 or not (isinstance(loc[i - 1], int) and piece in ("text", "video_url", "video")):
            # After an index, those words are the tag of a part and no field of the request.
            piece = piece[:_MAX_QUOTED_CHARS]
            text += f".{piece}" if text else piece
    return text


def _unknown_field(loc: tuple[int | str, ...]) -> str:
    name = str(loc[-1])[:_MAX_QUOTED_CHARS]
    near = difflib.get_close_matches(name, list(ChatRequest.model_fields), n=1) if len(loc) == 1 else []
    hint = f"; did you mean {near[0]!r}?" if near else "; leave it out"
    return f"{_dotted(loc[:-1]) or 'the request'} has an unknown field {name!r}{hint}"


def _only_user_message(messages: list[Message]) -> Message:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0]
    roles = [message.role for message in messages]
    raise RequestError(
        f"send exactly one message, with role 'user' (got roles {roles}): a request is one question about "
        "one clip, and the system prompt is the one the model was trained with",
        code="unsupported_messages",
        param="messages",
    )


def _only_video(message: Message) -> str:
    urls = [part.video for part in message.content if isinstance(part, VideoPart)]
    urls += [part.video_url.url for part in message.content if isinstance(part, VideoUrlPart)]
    if not urls:
        raise RequestError(f"there is no video: {_SEND_A_VIDEO}", code="no_video", param="messages")
    if len(urls) > 1:
        raise RequestError(
            f"there are {len(urls)} videos; send one video per request", code="many_videos", param="messages"
        )
    return urls[0]


def _within(name: str, asked: int | None, most: int) -> int:
    if asked is None:
        return most
    if asked > most:
        raise RequestError(f"{name} is {asked}; this server allows at most {most}", code="over_limit", param=name)
    return asked
