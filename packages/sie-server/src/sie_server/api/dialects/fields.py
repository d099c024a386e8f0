"""A reader that takes fields from a body one by one, under any of their spellings, and reports the rest.

A field is decoded when it is taken, so fields that the dialect does not have are never built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import msgspec

from sie_server.errors import InvalidInput, cut, reason_at

Kind = TypeVar("Kind")
MOST = 10_000  # fields of a body
NAMED = 10  # number of unknown fields named in warnings
SHOWN = 40  # characters shown of each name


class Fields:
    """The fields of a body. Fields that are never taken are unknown. Null and absent are equal."""

    def __init__(self, body: Mapping[str, msgspec.Raw]) -> None:
        """Raise InvalidInput if the body has too many fields."""
        if len(body) > MOST:
            raise InvalidInput(f"the body has {len(body)} fields; at most {MOST:,} are accepted - at `$`")
        self._left = {name: value for name, value in body.items() if bytes(memoryview(value)[:4]) != b"null"}
        self._known: list[str] = []
        self.warnings: list[str] = []
        self.spelled: dict[str, str] = {}  # first spelling → spelling in this body

    @overload
    def take(self, kind: type[Kind], *spellings: str) -> Kind | None: ...
    @overload
    def take(self, kind: Any, *spellings: str) -> Any: ...
    def take(self, kind: Any, *spellings: str) -> Any:
        """Return a field under any of its spellings; None if it is absent.

        Raises:
            InvalidInput: the type is wrong, or two spellings are present.
        """
        self._known.append(spellings[0])
        given = [name for name in spellings if name in self._left]
        if len(given) > 1:
            raise InvalidInput(
                f"`{given[0]}` and `{given[1]}` mean the same; send only one - at `$.{given[1]}`"
            )
        self.spelled[spellings[0]] = given[0] if given else spellings[0]
        if not given:
            return None
        try:
            return msgspec.json.decode(self._left.pop(given[0]), type=kind)
        except msgspec.ValidationError as error:
            raise InvalidInput(reason_at(error, f"$.{given[0]}")) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidInput(f"the value is not valid JSON in UTF-8 - at `$.{given[0]}`") from None

    def need(self, kind: type[Kind], *spellings: str) -> Kind:
        """Return a required field. Errors as in `take`, and if the field is absent."""
        value = self.take(kind, *spellings)
        if value is None:
            raise InvalidInput(f"missing required field `{spellings[0]}` - at `$.{spellings[0]}`")
        return value

    def has_no_effect(self, name: str, why: str) -> None:
        """Take a field of the dialect that this server ignores, and report it."""
        self._known.append(name)
        if self._left.pop(name, None) is not None:
            self.warnings.append(f"`{name}` was ignored: {why}")

    def refuse(self, name: str, why: str) -> None:
        """Reject a field that would change the response and is not supported.

        Raises:
            InvalidInput: the field is present.
        """
        if name in self._left:
            raise InvalidInput(f"{why} - at `$.{name}`")

    def finish(self, *, strict: bool) -> None:
        """Report the remaining fields, which are unknown, as an error (`strict`) or as warnings.

        Raises:
            InvalidInput: a field is unknown; the message lists the known ones.
        """
        unknown = [cut(name, SHOWN) for name in sorted(self._left)[:NAMED]]
        if unknown and strict:
            raise InvalidInput(
                f"unknown field `{unknown[0]}`; known fields: {', '.join(self._known)} - at `$.{unknown[0]}`"
            )
        self.warnings.extend(f"unknown field `{name}` was ignored" for name in unknown)
        if len(self._left) > NAMED:
            self.warnings.append(f"{len(self._left) - NAMED} more unknown fields were ignored")
