"""The errors of a load test."""

from __future__ import annotations


class LoadTestError(Exception):
    """The load test cannot start or go on. The message is one line with the cause and the next step."""


class Failure(Exception):
    """A request that brought no scores.

    `kind` is short, because equal ones are counted together: "HTTP 503", "timeout". `detail` is one line for a person.
    `refused` means that the endpoint works and is busy; its `retry_after` is in seconds.
    """

    def __init__(self, kind: str, detail: str = "", *, refused: bool = False, retry_after: float = 0) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.refused, self.retry_after = kind, detail, refused, retry_after
