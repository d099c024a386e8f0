"""The deadline of a request, from its header, and the check before its body is read."""

from __future__ import annotations

from starlette.requests import Request

from sie_server.errors import InvalidInput
from sie_server.serving.backend import Backend
from sie_server.serving.metrics import RequestTiming

HEADER = "X-SIE-Deadline-Ms"
MOST_DIGITS = 9  # more milliseconds than any request takes, and few enough for `int`


def check_unread(request: Request, model: str | None = None) -> None:
    """Read the deadline, and refuse a request that the device cannot answer in time; its body is still unread.

    Raises:
        InvalidInput: the header is not a number of milliseconds.
        QueueFull
    """
    timing: RequestTiming = request.state.timing
    service: Backend = request.app.state.service
    sent = request.headers.get(HEADER)
    if sent is not None:
        digits = sent.strip()
        if not (digits.isascii() and digits.isdigit()) or len(digits) > MOST_DIGITS or not int(digits):
            raise InvalidInput(
                f"the header {HEADER} must be a number of milliseconds from 1 to {10**MOST_DIGITS - 1}, "
                f"got {sent[:40]!r}"
            )
        timing.set_deadline(int(digits))
    service.check_early(model, timing)
