"""The HTTP routes over a service; every refusal leaves as an OpenAI-shaped error object."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from omni_serving.access import access_checks, caller
from omni_serving.config import ServeConfig
from omni_serving.errors import error_body
from omni_serving.protocol import ChatRequest, ModelEntry, ModelList
from omni_serving.reading import parse_request
from omni_serving.refusals import describe, refusal
from omni_serving.replies import DONE, Envelope, as_events, as_response, event
from omni_serving.uploads import Body, Upload, Uploads

if TYPE_CHECKING:
    from omni_model.reason import Reply

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
    uploads: Uploads

    def load(self) -> dict[str, int]:
        """How busy the service is: counts by name."""
        ...

    def check_health(self) -> None:
        """An exception where the model can answer nothing any more."""
        ...

    def check_capacity(self) -> None:
        """`RequestError` 429 where no request can be taken now."""
        ...

    async def begin(self, request: ChatRequest, upload: Upload, client: str) -> asyncio.Future[Reply]:
        """Fetch the clip and queue the question; `RequestError` where that cannot be."""
        ...


def create_api(service: Service, keys: tuple[str, ...] = ()) -> FastAPI:
    """The routes as an ASGI application, open to who has one of the keys; to all where there are none."""
    # The documentation pages of FastAPI load scripts from elsewhere; /openapi.json stays.
    api = FastAPI(title="latentomni", docs_url=None, redoc_url=None, middleware=access_checks(service.config, keys))
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

    async def health(self) -> JSONResponse:
        """200 while the model can answer, at capacity too; 503 where it cannot. The counts are those of one replica."""
        service = self._service
        state = {"model": service.config.model_name, **service.load()}
        try:
            service.check_health()
        except Exception:
            return JSONResponse({"status": "failed", **state}, status_code=503)
        full = state["open_requests"] >= service.config.max_requests
        return JSONResponse({"status": "at_capacity" if full else "ok", **state})

    async def models(self) -> ModelList:
        service = self._service
        entry = ModelEntry(id=service.config.model_name, created=self._loaded_at, method=service.method_name)
        return ModelList(data=[entry])

    async def chat(self, request: Request) -> Response:
        body = Body(request.receive)
        try:
            return await self._chat(request, body)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            return await refusal(error, body)

    async def _chat(self, request: Request, body: Body) -> Response:
        service, loop = self._service, asyncio.get_running_loop()
        latest = loop.time() + service.config.request_timeout_s
        async with asyncio.timeout_at(latest):
            # Before the body: a server at capacity reads nothing.
            service.check_capacity()
            async with service.uploads.receive(body, request.headers.get("content-length")) as upload:
                chat_request = await asyncio.to_thread(parse_request, upload.text)
                reply = await service.begin(chat_request, upload, caller(request.scope))
        pending = asyncio.wait_for(reply, latest - loop.time())
        envelope = Envelope(model=service.config.model_name)
        if chat_request.stream:
            include_usage = chat_request.stream_options.include_usage
            events = _guarded(as_events(pending, envelope, include_usage=include_usage))
            return StreamingResponse(events, media_type="text/event-stream")
        response = as_response(await pending, envelope)
        return Response(response.model_dump_json(), media_type="application/json")


async def _guarded(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The stream, with a failure reported as its last event: its status code has long been sent."""
    try:
        async for line in events:
            yield line
    except Exception as error:
        _, body = describe(error)
        yield event(json.dumps(body))
        yield DONE


async def _not_served(request: Request, error: Exception) -> JSONResponse:
    """Wrong path or method: Starlette's own answers, in our shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; the routes are in /openapi.json"
    body = error_body(message, status=error.status_code, code="no_such_route")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
