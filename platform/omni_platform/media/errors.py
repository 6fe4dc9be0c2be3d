"""What is wrong with a clip, as an exception that crosses processes."""

from __future__ import annotations


class MediaError(ValueError):
    """A clip that cannot be used. `reason` is a short stable word for counting, `detail` names the file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that the error survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail} [{self.reason}]"
