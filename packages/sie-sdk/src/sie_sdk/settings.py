"""The client's settings: arguments override the environment, which overrides the defaults."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from sie_sdk.version import __version__

log = logging.getLogger("sie_sdk")

DEFAULT_BASE_URL = "http://localhost:8080"
DEFAULT_TIMEOUT = 150.0  # seconds of silence in one attempt
DEFAULT_DEADLINE = 900.0  # seconds for a call with all its retries: large models take minutes to load


@dataclass(frozen=True)
class Settings:
    """The settings of a client. `timeout` and `deadline` are in seconds."""

    base_url: str
    timeout: float
    deadline: float
    headers: Mapping[str, str]

    @property
    def shown_url(self) -> str:
        """The base URL without user name and password, for messages."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def resolve(
    base_url: str | None = None,
    *,
    api_key: str | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
    machine_profile: str | None = None,
    pool: str | None = None,
) -> Settings:
    """Combine arguments and environment. Raises ValueError for an invalid value."""
    api_key = api_key or os.environ.get("SIE_API_KEY", "").strip() or None
    timeout = seconds("timeout", timeout) or _timeout_from_environment() or DEFAULT_TIMEOUT
    headers = {"User-Agent": f"sie-sdk/{__version__}", "X-SIE-SDK-Version": __version__}
    optional = {
        "Authorization": f"Bearer {api_key}" if api_key else None,
        "X-SIE-MACHINE-PROFILE": machine_profile,
        "X-SIE-Pool": pool,
    }
    for name, value in optional.items():
        if value is None:
            continue
        if not re.fullmatch(
            r"[\x20-\x7e]+", value
        ):  # the message does not contain the value, which may be a key
            raise ValueError(f"the value for {name} has characters that an HTTP header cannot hold")
        headers[name] = value
    return Settings(
        base_url=_checked_url(base_url or os.environ.get("SIE_BASE_URL", "").strip() or DEFAULT_BASE_URL),
        timeout=timeout,
        # A timeout above the default deadline extends the deadline.
        deadline=seconds("deadline", deadline) or max(DEFAULT_DEADLINE, timeout),
        headers=headers,
    )


def seconds(name: str, value: float | None) -> float | None:
    """Return `value` as a float, or None. Raises ValueError unless it is a positive, finite number."""
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}, not a positive number of seconds")
    return float(value)


def _timeout_from_environment() -> float | None:
    text = os.environ.get("SIE_TIMEOUT", "").strip()
    if not text:
        return None
    try:
        return seconds("SIE_TIMEOUT", float(text))
    except ValueError:
        raise ValueError(f"SIE_TIMEOUT is {text!r}, not a positive number of seconds") from None


def _checked_url(url: str) -> str:
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"base_url is {url!r}; it must not contain spaces or control characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url is {url!r}; it must start with http:// or https:// and contain a host")
    _ = parts.port  # raises ValueError when it is not a number in range
    if parts.query or parts.fragment:
        raise ValueError(f"base_url is {url!r}; it must not contain a query or fragment")
    return url.rstrip("/")


class SkewWatch:
    """Warns once per client if client and server are more than one minor version apart."""

    def __init__(self) -> None:
        self._warned = False

    def see(self, headers: Mapping[str, str]) -> None:
        """Read the version from an answer's headers (lower-case names)."""
        server = headers.get("x-sie-server-version")
        if server is None or self._warned or not skewed(__version__, server):
            return
        self._warned = True
        log.warning(
            "sie-sdk %s is connected to a server of version %s; some features may differ", __version__, server
        )


def skewed(ours: str, theirs: str) -> bool:
    """Return whether two versions differ in the major or by more than one minor; False if one is unreadable."""
    found = [re.match(r"v?(\d+)\.(\d+)", version) for version in (ours, theirs)]
    if found[0] is None or found[1] is None:
        return False
    (major, minor), (other_major, other_minor) = (tuple(map(int, match.groups())) for match in found if match)
    return major != other_major or abs(minor - other_minor) > 1
