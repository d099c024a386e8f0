"""A reader that takes fields from a body one by one, under any of their spellings, and reports the rest.

A field is decoded when it is taken, so fields that the dialect does not have are never built. Numbers and booleans may
also be written as strings ("3", "true") and whole numbers as floats, because servers made with pydantic accept that and
some clients rely on it.
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

    def __init__(self, body: Mapping[str, msgspec.Raw], path: str = "$") -> None:
        """Read an object of the body, at `path`.

        Raises:
            InvalidInput: it has too many fields.
        """
        if len(body) > MOST:
            raise InvalidInput(
                f"the body has {len(body)} fields; at most {MOST:,} are accepted - at `{path}`"
            )
        self._path = path
        self._left = {name: value for name, value in body.items() if bytes(memoryview(value)[:4]) != b"null"}
        self._known: list[str] = []
        self.warnings: list[str] = []
        self.spelled: dict[str, str] = {}  # first spelling → spelling in this body
        self._parents: dict[str, str] = {}  # field → the object that it was taken from

    def inside(self, name: str) -> Fields:
        """Take an object in the body; absent, it has no fields.

        Raises:
            InvalidInput: it is not an object.
        """
        return Fields(self.take(dict[str, msgspec.Raw], name) or {}, self.at(name))

    def unfold(self, name: str) -> None:
        """Replace an object in the body by its fields, for dialects that group their fields.

        Raises:
            InvalidInput: it is not an object, or a field is present both inside and outside of it.
        """
        for field, value in self.inside(name)._left.items():
            if field in self._left:
                raise InvalidInput(
                    f"`{field}` and `{name}.{field}` mean the same; send only one - at `$.{name}.{field}`"
                )
            self._left[field], self._parents[field] = value, name

    def at(self, name: str) -> str:
        """Return the path of a field in the body, under its spelling there: `$.top_k` for `top_n`."""
        name = self.spelled.get(name, name)
        parent = self._parents.get(name)
        return f"{self._path}.{parent}.{name}" if parent else f"{self._path}.{name}"

    def sent(self, name: str) -> bool:
        """Return whether a field is present and has not been taken."""
        return name in self._left

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
                f"`{given[0]}` and `{given[1]}` mean the same; send only one - at `{self.at(given[1])}`"
            )
        self.spelled[spellings[0]] = given[0] if given else spellings[0]
        if not given:
            return None
        try:
            return msgspec.json.decode(self._left.pop(given[0]), type=kind, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidInput(reason_at(error, self.at(given[0]))) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidInput(f"the value is not valid JSON in UTF-8 - at `{self.at(given[0])}`") from None

    def need(self, kind: type[Kind], *spellings: str) -> Kind:
        """Return a required field. Errors as in `take`, and if the field is absent."""
        value = self.take(kind, *spellings)
        if value is None:
            raise InvalidInput(f"missing required field `{spellings[0]}` - at `{self.at(spellings[0])}`")
        return value

    def has_no_effect(self, name: str, why: str) -> None:
        """Take a field of the dialect that this server ignores, and report it."""
        self._known.append(name)
        if self._left.pop(name, None) is not None:
            self.warnings.append(f"`{name}` was ignored: {why}")

    def is_met(self, *names: str) -> None:
        """Take fields of the dialect whose effect every answer has already."""
        for name in names:
            self._known.append(name)
            self._left.pop(name, None)

    def refuse_true(self, name: str, why: str) -> None:
        """Take a switch of the dialect that this server does not have.

        Raises:
            InvalidInput: the switch is on.
        """
        if self.take(bool, name):
            raise InvalidInput(f"{why}; omit this field - at `{self.at(name)}`")

    def refuse(self, name: str, why: str) -> None:
        """Reject a field that would change the response and is not supported.

        Raises:
            InvalidInput: the field is present.
        """
        if name in self._left:
            raise InvalidInput(f"{why} - at `{self.at(name)}`")

    def finish(self, *, strict: bool) -> None:
        """Report the remaining fields, which are unknown, as an error (`strict`) or as warnings.

        Raises:
            InvalidInput: a field is unknown; the message lists the known ones.
        """
        unknown = [cut(name, SHOWN) for name in sorted(self._left)[:NAMED]]
        if unknown and strict:
            raise InvalidInput(
                f"unknown field `{unknown[0]}`; known fields: {', '.join(self._known)} - at `{self.at(unknown[0])}`"
            )
        self.warnings.extend(f"unknown field `{self.at(name)[2:]}` was ignored" for name in unknown)
        if len(self._left) > NAMED:
            self.warnings.append(f"{len(self._left) - NAMED} more unknown fields were ignored")
