"""A running server, as `sie-server admin` and `top` call it over HTTP.

The standard library's HTTP client does not follow redirects, so the key is sent to the configured server only.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import click

Json = dict[str, Any]
LONGEST_ANSWER = 2**26  # bytes; the rest is not read, so a longer answer is not understood


class Remote:
    """A running server."""

    def __init__(self, url: str) -> None:
        """Raises UsageError for an invalid URL or key."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or port == -1:
            raise click.UsageError("--url (SIE_BASE_URL) does not have the form http://HOST:PORT")
        key = os.environ.get("SIE_ADMIN_KEY") or os.environ.get("SIE_API_KEY") or ""
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise click.UsageError(
                "the key in SIE_ADMIN_KEY or SIE_API_KEY has characters that a header cannot hold"
            )
        self._https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._path = parts.path.rstrip("/")
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without user name and password
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: Json | None = None, timeout: float | None = None) -> Json:
        """POST the body, or GET if it is None, and return the answer.

        Raises:
            ClickException: the server did not answer, or its answer is not a 200 with a JSON object.
        """
        status, content, target = self._exchange(path, body, timeout)
        value = _object(content)
        if status != 200 or value is None:
            raise click.ClickException(_complaint(status, value, self._at(path), target))
        return value

    def text(self, path: str, timeout: float | None = None) -> str:
        """GET a text.

        Raises:
            ClickException: the server did not answer, or its answer is not a 200.
        """
        status, content, target = self._exchange(path, None, timeout)
        if status != 200:
            raise click.ClickException(_complaint(status, _object(content), self._at(path), target))
        return content.decode(errors="replace")

    def _exchange(self, path: str, body: Json | None, timeout: float | None) -> tuple[int, bytes, str]:
        """Return the status and the body of the answer, and where it redirects to in words."""
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout)
        sent = json.dumps(body) if body is not None else None
        step = "check that the server is running, or set --url or SIE_BASE_URL"
        try:
            connection.request("POST" if sent else "GET", self._path + path, sent, self._headers)
            if sent:
                step = "the request may have been carried out; see `sie-server admin models` before you repeat it"
            answer = connection.getresponse()
            content = answer.read(LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(
                f"no answer from {self.shown}: {error or type(error).__name__}; {step}"
            ) from None
        finally:
            connection.close()
        location = answer.headers["location"]
        return answer.status, content, f" and redirects to {location}" if location else ""

    @contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Report an answer whose fields cannot be read as the answer of another program."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            raise click.ClickException(_complaint(200, None, self._at(path))) from None

    def _at(self, path: str) -> str:
        return f"{self.shown}{self._path}{path}"


def _complaint(status: int, value: Json | None, where: str, target: str = "") -> str:
    error = (value or {}).get("error")
    if not isinstance(error, dict) or "message" not in error:
        return f"{where} answered {status}{target}, which is not an answer of a SIE server; check --url"
    hint = ""
    if status in (401, 403):
        hint = "; the key is read from SIE_ADMIN_KEY, or else from SIE_API_KEY"
    return f"{error['message']}{hint} ({status} {error.get('code')})"


def _object(content: bytes) -> Json | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option `--url`, whose value is the argument `remote`."""
    return click.option(
        "--url",
        "remote",
        envvar="SIE_BASE_URL",
        default="http://127.0.0.1:8080",
        callback=lambda _context, _option, url: Remote(url),
        help="URL of the server  [SIE_BASE_URL; default: http://127.0.0.1:8080]",
    )(command)
