"""API keys and their scopes, read from `api_keys` and from the file `api_keys_file`.

    SIE_API_KEYS="search:infer:KEY,ops:admin:KEY"     or only KEY, with the scope infer

    [[key]]
    name = "ops"
    key_sha256 = "…"     # or: key = "…"
    scopes = ["admin"]   # default: ["infer"]
    limits = {requests_per_second = 5, tokens_per_minute = 600_000}   # default: [limits] of the file

Only digests are kept. Messages refer to a key by its position and never quote a value, which may be a misplaced key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from sie_server.config import ConfigError, ServerConfig
from sie_server.files import read_text
from sie_server.wire import KeyLimits

Scope = Literal["infer", "admin"]
KEY = re.compile(r"[\x21-\x7e]{16,}")  # visible ASCII, which fits into a header
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TABLE = re.compile(r" - at `\$(\.key\[\d+\])?(\.limits)?`$")  # of the file, at the end of a message
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """An API key. Its `name` may appear in logs."""

    name: str
    digest: bytes = field(repr=False)  # SHA-256
    scopes: frozenset[Scope]
    limits: KeyLimits  # none with the scope admin

    def may(self, scope: Scope) -> bool:
        """Return whether the key has the scope. `admin` includes all scopes."""
        return scope in self.scopes or "admin" in self.scopes


class KeyEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A `[[key]]` table of the file."""

    name: str
    key: str | None = None
    key_sha256: str | None = None
    scopes: tuple[str, ...] = ("infer",)
    limits: KeyLimits | None = None


class KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file `api_keys_file`."""

    key: list[KeyEntry] = []
    limits: KeyLimits | None = None  # of keys without limits of their own, those of `api_keys` included


def read_keys(config: ServerConfig) -> tuple[ApiKey, ...]:
    """Return all keys of a configuration; none if neither source is configured.

    Raises:
        ConfigError: a key is malformed, too short or repeated, or a configured source contains none.
    """
    text, file = config.api_keys, config.api_keys_file
    content = KeyFile() if file is None else _of_file(file)
    _check_limits(content.limits or KeyLimits(), f"{file}: [limits]")
    keys = [] if text is None else _checked(_of_text(text.value), "api_keys", content.limits)
    if file is not None:
        if not content.key and not (keys and content.limits):  # limits alone are useful for other keys
            raise ConfigError(f"{file} contains no API keys; add a [[key]] with name, key and scopes")
        keys += _checked(content.key, file, content.limits)
    for what, values in (("name", [k.name for k in keys]), ("key", [k.digest for k in keys])):
        if len(set(values)) < len(values):
            raise ConfigError(f"two API keys have the same {what}; each needs its own")
    return tuple(keys)


def find_key(keys: tuple[ApiKey, ...], sent: bytes) -> ApiKey | None:
    """Return the key that was sent, in a time that does not depend on which key or prefix matches."""
    digest, found = hashlib.sha256(sent).digest(), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def _of_text(text: str) -> list[KeyEntry]:
    entries = []
    for i, part in enumerate((part.strip() for part in text.split(",")), 1):
        match part.split(":", 2):
            case [key]:
                entries.append(KeyEntry(f"key-{i}", key))
            case [name, scopes, key]:
                entries.append(KeyEntry(name, key, scopes=tuple(scopes.split("+"))))
            case _:
                raise ConfigError(
                    f"api_keys: key {i}: expected KEY or NAME:SCOPES:KEY, such as ops:admin:KEY"
                )
    return entries


def _of_file(file: str) -> KeyFile:
    try:
        return msgspec.convert(tomllib.loads(read_text(Path(file))), KeyFile)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{file}: expected only [[key]] tables with name, scopes (a list), limits and key or key_sha256, and a "
            f"table [limits]; limits have {', '.join(KeyLimits.__struct_fields__)}: {_problem(error)}"
        ) from None
    except FileNotFoundError:
        raise ConfigError(
            f"cannot read the API keys in {file}: there is no such file; if it is a mounted secret, check its name "
            "and that it is mounted"
        ) from None
    except (OSError, ValueError) as error:  # messages of tomllib contain positions, not values
        raise ConfigError(f"cannot read the API keys in {file}: {error}") from None


def _problem(error: msgspec.ValidationError) -> str:
    """Return the message without the name of an unknown field, which may be a key. It quotes nothing else."""
    if "unknown field" not in str(error):
        return str(error)
    place = TABLE.search(str(error))
    return f"unknown field{place[0] if place else ''}"


def _checked(entries: list[KeyEntry], source: str, limits: KeyLimits | None) -> list[ApiKey]:
    return [_check(entry, f"{source}: key {i}", limits or KeyLimits()) for i, entry in enumerate(entries, 1)]


def _check(entry: KeyEntry, where: str, default: KeyLimits) -> ApiKey:
    if not NAME.fullmatch(entry.name):
        raise ConfigError(f"{where}: the name must have 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    scopes = frozenset(scope for scope in get_args(Scope) if scope in entry.scopes)
    if not scopes or len(scopes) < len(set(entry.scopes)):
        raise ConfigError(
            f"{where}: expected at least one of the scopes {' and '.join(get_args(Scope))}, and no other"
        )
    limits = default if entry.limits is None else _check_limits(entry.limits, f"{where}: limits")
    if "admin" in scopes:
        if entry.limits is not None:
            raise ConfigError(
                f"{where}: a key with the scope admin has no limits; remove limits, or use another key to infer"
            )
        limits = KeyLimits()
    return ApiKey(entry.name, _digest(entry, where), scopes, limits)


def _check_limits(limits: KeyLimits, where: str) -> KeyLimits:
    if limits.burst is not None and limits.requests_per_second is None:
        raise ConfigError(f"{where}: burst has a meaning only with requests_per_second; set both")
    return limits


def _digest(entry: KeyEntry, where: str) -> bytes:
    if (entry.key is None) == (entry.key_sha256 is None):
        raise ConfigError(f"{where}: set either key or key_sha256")
    if entry.key is not None:
        if not KEY.fullmatch(entry.key):
            raise ConfigError(
                f"{where}: a key must have at least 16 visible ASCII characters; `openssl rand -hex 32` generates one"
            )
        return hashlib.sha256(entry.key.encode()).digest()
    digest = (entry.key_sha256 or "").lower()
    if not DIGEST.fullmatch(digest):
        raise ConfigError(f"{where}: key_sha256 is not a SHA-256 in hexadecimal (64 digits)")
    return bytes.fromhex(digest)
