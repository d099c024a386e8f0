"""The first request: does the endpoint answer, and in which dialect?"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from sie_server.loadtest.connection import Connection
from sie_server.loadtest.dialects import DIALECTS, PROBED, ClientDialect
from sie_server.loadtest.errors import Failure, LoadTestError
from sie_server.loadtest.target import Target

QUERY = "how do stars shine"
DOCUMENTS = ("Stars burn hydrogen into helium.", "Rain falls over the harbour.")
GONE = ("timeout", "connection refused", "connection closed", "no connection", "TLS error", "no HTTP")
KEY = "; name the environment variable that holds the key: --api-key-env NAME"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint in one dialect."""

    target: Target
    dialect: ClientDialect
    model: str
    key: str = ""
    timeout_s: float = 60.0

    def connect(self) -> Connection:
        """Return a connection, which is opened by its first request."""
        headers = {**(self.dialect.headers or {}), **self.dialect.key_headers(self.key)}
        return Connection(self.target, self.timeout_s, headers)

    @property
    def path(self) -> str:
        """The path of all requests."""
        return self.target.at(self.dialect.path_for(self.model))

    def body(self, query: str, documents: list[str]) -> bytes:
        """Return the body of a request."""
        return json.dumps(self.dialect.body(self.model, query, documents)).encode()

    def score(self, connection: Connection, query: str, documents: list[str]) -> list[float]:
        """Send one request and return the scores in the order of the documents. Raises Failure."""
        answer = connection.ask(self.path, self.body(query, documents))
        return self.dialect.results.read(answer, len(documents))


def probe(url: str, dialect: str | None, model: str, key: str, timeout_s: float) -> Endpoint:
    """Send a request of two documents in the named dialect, or in each one until one fits.

    Raises:
        LoadTestError: the endpoint does not answer, or not in this dialect or any of those tried.
    """
    target = Target.of(url)
    answers = []
    for candidate in _candidates(dialect, model):
        endpoint = Endpoint(target, candidate, model, key, timeout_s)
        failure = _tried(endpoint)
        if failure is None:
            return endpoint
        hint = KEY if failure.kind in ("HTTP 401", "HTTP 403") and not key else ""
        if dialect or hint or failure.kind in GONE:
            named = f"{target.shown}, dialect {candidate.name}" if dialect else target.shown
            raise LoadTestError(f"{named}: {failure}{hint}")
        answers.append(f"{candidate.name} {failure.kind}")
    raise LoadTestError(
        f"{target.shown} answers in no dialect that was tried ({', '.join(answers)}); name it with --dialect"
        + ("" if model else ", and the model with --model")
    )


def _candidates(dialect: str | None, model: str) -> Iterator[ClientDialect]:
    if dialect and DIALECTS[dialect].needs_model and not model:
        raise LoadTestError(f"dialect {dialect} names the model in its requests; add --model ID")
    for name in (dialect,) if dialect else PROBED:
        if model or not DIALECTS[name].needs_model:
            yield DIALECTS[name]


def _tried(endpoint: Endpoint) -> Failure | None:
    connection = endpoint.connect()
    # an endpoint that sends its header byte by byte meets no time limit of a socket
    watch = threading.Timer(endpoint.timeout_s + 1, connection.close)
    watch.daemon = True
    watch.start()
    try:
        endpoint.score(connection, QUERY, list(DOCUMENTS))
    except Failure as failure:
        return failure
    finally:
        watch.cancel()
        connection.close()
    return None
