"""The HTTP routes over a service; every refusal leaves as an OpenAI-shaped error object."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError, error_body
from omni_serving.protocol import ChatRequest, ModelEntry, ModelList
from omni_serving.reading import parse_request
from omni_serving.replies import DONE, Envelope, as_events, as_response, event

if TYPE_CHECKING:
    from omni_model.reason import Reply

logger = logging.getLogger("ray.serve")
_BESIDE_THE_CLIP_BYTES = 1 << 20
_INTERNAL = "the server failed while answering; its log has the cause"
_REQUEST_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ChatRequest.model_json_schema()}},
    }
}


class Service(Protocol):
    """What the routes stand on."""

    config: ServeConfig
    method_name: str

    def load(self) -> dict[str, int]:
        """How busy the service is: counts by name."""
        ...

    async def begin(self, request: ChatRequest) -> asyncio.Future[Reply]:
        """Fetch the clip and queue the question; `RequestError` where that cannot be."""
        ...


def create_api(service: Service) -> FastAPI:
    """The routes as an ASGI application."""
    # The documentation pages of FastAPI load scripts from elsewhere; /openapi.json stays.
    api = FastAPI(title="latentomni", docs_url=None, redoc_url=None)
    routes = _Routes(service)
    api.add_api_route("/health", routes.health, methods=["GET"], response_model=None)
    api.add_api_route("/v1/models", routes.models, methods=["GET"])
    api.add_api_route(
        "/v1/chat/completions",
        routes.chat,
        methods=["POST"],
        response_model=None,
        openapi_extra=_REQUEST_SCHEMA,
    )
    api.add_exception_handler(HTTPException, _not_served)
    return api


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._loaded_at = int(time.time())

    async def health(self) -> dict:
        """An answer at all means: the model is loaded. The counts are of the replica that answers."""
        return {"status": "ok", "model": self._service.config.model_name, **self._service.load()}

    async def models(self) -> ModelList:
        service = self._service
        entry = ModelEntry(id=service.config.model_name, created=self._loaded_at, method=service.method_name)
        return ModelList(data=[entry])

    async def chat(self, request: Request) -> Response:
        try:
            return await self._chat(request)
        except Exception as error:
            return _error_response(error)

    async def _chat(self, request: Request) -> Response:
        service = self._service
        body = await _read_body(request, _max_body_bytes(service.config))
        # A clip in a data URI makes a body of many megabytes: not on the event loop.
        chat_request = await asyncio.to_thread(parse_request, body)
        pending = await service.begin(chat_request)
        envelope = Envelope(model=service.config.model_name)
        if chat_request.stream:
            include_usage = chat_request.stream_options.include_usage
            events = _guarded(as_events(pending, envelope, include_usage=include_usage))
            return StreamingResponse(events, media_type="text/event-stream")
        response = as_response(await pending, envelope)
        return Response(response.model_dump_json(), media_type="application/json")


def _max_body_bytes(config: ServeConfig) -> int:
    """Room for the largest clip in base64."""
    return (config.max_video_bytes + 2) // 3 * 4 + _BESIDE_THE_CLIP_BYTES


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, given up on as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _body_too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _body_too_large(max_bytes)
    return bytes(body)


def _body_too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"the request is larger than {max_bytes} bytes; send a smaller clip, or a file in an allowed folder",
        code="media_too_large",
        status=413,
    )


async def _guarded(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The stream, with a failure told as its last event: its status code has long been sent."""
    try:
        async for line in events:
            yield line
    except Exception as error:
        _, body = _describe(error)
        yield event(json.dumps(body))
        yield DONE


def _error_response(error: Exception) -> JSONResponse:
    status, body = _describe(error)
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(body, status_code=status, headers=headers)


def _describe(error: Exception) -> tuple[int, dict]:
    if isinstance(error, RequestError):
        body = error_body(error.message, status=error.status, code=error.code, param=error.param)
        return error.status, body
    logger.error("a request failed", exc_info=error)
    return 500, error_body(_INTERNAL, status=500, code="internal_error")


async def _not_served(request: Request, error: Exception) -> JSONResponse:
    """Wrong path or method: Starlette's own answers, in our shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; the routes are in /openapi.json"
    body = error_body(message, status=error.status_code, code="no_such_route")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
