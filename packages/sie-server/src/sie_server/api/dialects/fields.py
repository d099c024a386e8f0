"""A liberal reader: fields are taken from a body one by one, under any of their spellings, and none is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import msgspec

from sie_server.errors import InvalidInput

Kind = TypeVar("Kind")
NAMED = 10  # unknown fields that a message names; each by its first SHOWN characters
SHOWN = 40


class Fields:
    """A body on its way to being understood; what nobody takes is unknown. Null and absent are the same."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}
        self._known: list[str] = []
        self.warnings: list[str] = []
        self.spelled: dict[str, str] = {}  # first spelling → the one in this body

    @overload
    def take(self, kind: type[Kind], *spellings: str) -> Kind | None: ...
    @overload
    def take(self, kind: Any, *spellings: str) -> Any: ...
    def take(self, kind: Any, *spellings: str) -> Any:
        """A field under one of its spellings; None when it is not there.

        Raises:
            InvalidInput: a wrong type, or two spellings at once.
        """
        self._known.append(spellings[0])
        given = [name for name in spellings if name in self._left]
        if len(given) > 1:
            raise InvalidInput(f"`{given[0]}` and `{given[1]}` mean the same; send one - at `$.{given[1]}`")
        self.spelled[spellings[0]] = given[0] if given else spellings[0]
        if not given:
            return None
        try:
            return msgspec.convert(self._left.pop(given[0]), kind)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$")
            raise InvalidInput(f"{reason} - at `$.{given[0]}{where or '`'}") from None

    def need(self, kind: type[Kind], *spellings: str) -> Kind:
        """As `take`, and missing is an error."""
        value = self.take(kind, *spellings)
        if value is None:
            raise InvalidInput(f"missing required field `{spellings[0]}` - at `$.{spellings[0]}`")
        return value

    def has_no_effect(self, name: str, why: str) -> None:
        """A field that the dialect has and this server does nothing with."""
        self._known.append(name)
        if self._left.pop(name, None) is not None:
            self.warnings.append(f"`{name}` was ignored: {why}")

    def refuse(self, name: str, why: str) -> None:
        """A field without which the answer would be another one.

        Raises:
            InvalidInput: it is there.
        """
        if name in self._left:
            raise InvalidInput(f"{why} - at `$.{name}`")

    def finish(self, *, strict: bool) -> None:
        """What is left is unknown: an error, or a warning.

        Raises:
            InvalidInput: with the known fields.
        """
        unknown = [name if len(name) <= SHOWN else name[:SHOWN] + "…" for name in sorted(self._left)[:NAMED]]
        if unknown and strict:
            raise InvalidInput(
                f"unknown field `{unknown[0]}`; known are {', '.join(self._known)} - at `$.{unknown[0]}`"
            )
        self.warnings.extend(f"the field `{name}` is unknown and was ignored" for name in unknown)
        if len(self._left) > NAMED:
            self.warnings.append(f"{len(self._left) - NAMED} more fields are unknown and were ignored")
