"""How a request that is not answered ends: an OpenAI-shaped error, and a connection that can be used or is closed."""

from __future__ import annotations

import logging

from fastapi.responses import JSONResponse

from omni_serving.errors import RequestError, error_body
from omni_serving.uploads import Body

logger = logging.getLogger("ray.serve")
_INTERNAL = "the server failed while answering; its log has the cause"
_TOO_LATE = "the answer took longer than the server allows; ask for fewer tokens, or try again later"
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}


async def refusal(error: Exception, body: Body) -> JSONResponse:
    """The answer to a request that failed; what is still arriving of its body is discarded first."""
    status, content = describe(error)
    if status != 408:
        await body.drain()
    headers = dict(_HEADERS.get(status, {}))
    if not body.finished:
        # What comes next on this connection would be the rest of this body.
        headers["Connection"] = "close"
    return JSONResponse(content, status_code=status, headers=headers)


def describe(error: Exception) -> tuple[int, dict]:
    """Status and body for an error; only a `RequestError` speaks to the client, everything else goes to the log."""
    if isinstance(error, RequestError):
        return error.status, error_body(error.message, status=error.status, code=error.code, param=error.param)
    if isinstance(error, TimeoutError):
        return 504, error_body(_TOO_LATE, status=504, code="timeout")
    logger.error("a request failed", exc_info=error)
    return 500, error_body(_INTERNAL, status=500, code="internal_error")
