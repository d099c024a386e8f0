"""The address of an endpoint, as the user writes it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sie_server.loadtest.errors import LoadTestError


@dataclass(frozen=True)
class Target:
    """An endpoint: https or http, host, port (None: that of the scheme) and the path before that of the dialect."""

    https: bool
    host: str
    port: int | None
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        """Read a URL.

        Raises:
            LoadTestError: it is no URL of an endpoint; the message says why.
        """
        try:
            parts = urlsplit(url.strip())
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise LoadTestError(f"--endpoint {url!r}: {error}; expected the form http://HOST:PORT") from None
        if parts.scheme not in ("http", "https"):
            raise LoadTestError(
                f"--endpoint {url!r} has no scheme http or https; expected the form http://HOST:PORT"
            )
        if not host or port == 0 or not (url.isascii() and url.strip().isprintable()) or " " in url.strip():
            raise LoadTestError(f"--endpoint {url!r} names no host; expected the form http://HOST:PORT")
        if parts.username is not None or parts.password is not None:
            raise LoadTestError("--endpoint contains a user name or password; name a key with --api-key-env")
        if parts.query or parts.fragment:
            raise LoadTestError(f"--endpoint {url!r} has a query or fragment, which no dialect has; omit it")
        return cls(parts.scheme == "https", host, port, parts.path.rstrip("/"))

    @property
    def shown(self) -> str:
        """The URL without anything secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.https else 'http'}://{host}{port}{self.path}"

    def at(self, path: str) -> str:
        """Return the path of a dialect below this endpoint; the URL may also end with that path already."""
        return self.path if self.path.endswith(path) else self.path + path
