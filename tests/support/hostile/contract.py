"""The rules that every answer of a server follows, also after a broken request (docs/http-api.md#errors)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

from sie_server import errors
from sie_server.api import dialects
from sie_server.api.edge.paths import clean

LARGEST_ERROR = 10_000  # bytes
KNOWN = {
    kind.code: kind.status
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.SIEError)
}
UNEXPECTED = (500,)  # no request may cause one, because the models under test are sound
RETRIED = ("MODEL_LOADING", "QUEUE_FULL", "RESOURCE_EXHAUSTED")


def fault_of(status: int, headers: Mapping[str, str], body: bytes, path: str = "") -> str | None:
    """Return how an answer breaks the contract, or None. Names in `headers` are lower case."""
    if status < 400:
        return None
    if status in UNEXPECTED:
        return f"status {status}: {body[:300]!r}"
    if len(body) > LARGEST_ERROR:
        return f"status {status} with a body of {len(body):,} bytes"
    code = headers.get("x-sie-error-code", "")
    if KNOWN.get(code) != status:
        return f"status {status} with the code {code!r}: {body[:300]!r}"
    if status == 503 and not (code in RETRIED and headers.get("retry-after", "").isdigit()):
        return f"503 {code} with Retry-After {headers.get('retry-after')!r}"
    if int(headers.get("retry-after", "1")) < 1:
        return f"Retry-After {headers['retry-after']}"
    if "x-sie-server-version" not in headers:
        return f"status {status} without X-SIE-Server-Version"
    return _fault_of_body(code, body, path)


def _fault_of_body(code: str, body: bytes, path: str) -> str | None:
    try:
        content = json.loads(body)
    except ValueError:
        return f"an error that is not JSON: {body[:300]!r}"
    own = re.sub(r"^[a-z]+://[^/]*", "", path) or "/"  # also of an absolute URI
    if clean(unquote(own)) in dialects.PATHS:  # another vendor's form
        return None
    detail = content.get("detail") if isinstance(content, dict) else None
    if not isinstance(detail, dict) or detail != content.get("error") or content.get("code") != code:
        return f"an error body of another form: {body[:300]!r}"
    if detail.get("code") != code or not isinstance(detail.get("message"), str):
        return f"an error without code or message: {body[:300]!r}"
    return None
