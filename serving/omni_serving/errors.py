"""What a client is told when its request cannot be answered."""

from __future__ import annotations

_TYPES = {403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(ValueError):
    """A request that the server refuses; the message says what to change.

    `code` is a short stable word for programs, `param` the field of the request that is at fault.
    """

    def __init__(
        self, message: str, *, code: str = "invalid_request", status: int = 400, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.status, self.param = message, code, status, param


def error_body(message: str, *, status: int, code: str | None = None, param: str | None = None) -> dict:
    """The error object that OpenAI clients know how to read."""
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
