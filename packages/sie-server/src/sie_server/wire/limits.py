"""How much a request body may contain. Bodies are checked before msgspec builds objects from them.

A body of 60 MiB may contain 20 million values, each of which becomes an object of 50 bytes and more. msgspec also holds
the interpreter while it decodes, so no other thread runs until the last object is built.

JSON is scanned in slices, with numpy, which lets other threads run. MessagePack states the length of every list, which
msgspec compares with the types; only free-form values in it are counted here.
"""

from __future__ import annotations

import struct

import numpy as np

from sie_server.errors import InvalidInput

MAX_VALUES = 1_000_000  # numbers, texts, lists and objects, and the names of fields
MAX_CONTAINERS = 100_000  # lists and objects
MAX_DEPTH = 100
MAX_ITEMS = 100_000
SLICE = 2**18

TOO_DEEP = f"the body is nested too deeply; at most {MAX_DEPTH} levels are accepted"
TOO_MANY_VALUES = (
    f"the body contains more than {MAX_VALUES:,} values; send fewer items per request, and arrays as MessagePack "
    "(docs/http-api.md#arrays)"
)
TOO_MANY_CONTAINERS = (
    f"the body contains more than {MAX_CONTAINERS:,} lists and objects; send fewer items per request, and arrays as "
    "MessagePack (docs/http-api.md#arrays)"
)


def check_json(body: bytes) -> None:
    """Check the number of values and the nesting of a JSON body.

    A body that is not valid JSON is checked up to its first error at least. msgspec builds nothing after that.

    Raises:
        InvalidInput: a limit is exceeded.
    """
    opens = separators = 0
    for start in range(0, len(body), SLICE):  # counted in texts too, so this is an upper bound
        opens += sum(body.count(mark, start, start + SLICE) for mark in (b"[", b"{"))
        separators += sum(body.count(mark, start, start + SLICE) for mark in (b",", b":"))
        if opens > MAX_DEPTH or opens + separators > MAX_VALUES:
            _Scan().check(body)
            return


class _Scan:
    """Counts the marks of a JSON body that are outside of texts, slice by slice."""

    def __init__(self) -> None:
        self.in_text = False
        self.depth = self.containers = self.values = 0

    def check(self, body: bytes) -> None:
        """Raise InvalidInput at the first slice that exceeds a limit."""
        start = 0
        while start < len(body):
            part = body[start : start + SLICE]
            escapes = len(part) - len(part.rstrip(b"\\"))
            if escapes % 2 and start + len(part) < len(body):
                part = part[:-1]  # the last backslash belongs to the first character of the next slice
            start += len(part)
            self._count(part)

    def _count(self, part: bytes) -> None:
        if b"\\" in part:
            part = part.replace(rb"\\", b"__").replace(rb"\"", b"__")
        codes = np.frombuffer(part, np.uint8)
        # uint8 wraps around, which keeps the parity
        quotes = np.cumsum(codes == ord('"'), dtype=np.uint8)
        outside = (quotes & 1) == self.in_text
        self.in_text ^= bool(quotes[-1] & 1)
        folded = codes | 0x20  # [ becomes {, and ] becomes }
        opens, closes = (folded == ord("{")) & outside, (folded == ord("}")) & outside
        separators = ((codes == ord(",")) | (codes == ord(":"))) & outside
        new = int(np.count_nonzero(opens))
        self.containers += new
        self.values += new + int(np.count_nonzero(separators))
        brackets = np.flatnonzero(opens | closes)
        if brackets.size:
            depths = self.depth + np.cumsum(np.where(opens[brackets], 1, -1))
            self.depth = int(depths[-1])
            if depths.max() > MAX_DEPTH:
                raise InvalidInput(TOO_DEEP)
        if self.containers > MAX_CONTAINERS:
            raise InvalidInput(TOO_MANY_CONTAINERS)
        if self.values > MAX_VALUES:
            raise InvalidInput(TOO_MANY_VALUES)


# ── MessagePack ──

# tag → bytes of a value of fixed size after its tag
_SIZES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8} | {
    0xD4 + i: 1 + 2**i for i in range(5)
}
# tag → format of its length, and bytes between length and data
_LENGTHS = {
    0xC4: (">B", 0), 0xC5: (">H", 0), 0xC6: (">I", 0), 0xC7: (">B", 1), 0xC8: (">H", 1), 0xC9: (">I", 1),
    0xD9: (">B", 0), 0xDA: (">H", 0), 0xDB: (">I", 0),
}  # fmt: skip
_COUNTS = {0xDC: (">H", 1), 0xDD: (">I", 1), 0xDE: (">H", 2), 0xDF: (">I", 2)}


def check_msgpack(data: bytes | memoryview, most: int = MAX_VALUES) -> int:
    """Return the number of values in one MessagePack value, and check it and the nesting. Nothing is built.

    Raises:
        InvalidInput: a limit is exceeded, or a length is larger than the data.
    """
    position = values = containers = 0
    left = [1]  # values that each open container still has
    try:
        while left:
            if left[-1] == 0:
                left.pop()
                continue
            left[-1] -= 1
            values += 1
            position, inside = _step(data, position)
            if inside is None:
                continue
            left.append(inside)
            containers += 1
            if len(left) > MAX_DEPTH + 1:
                raise InvalidInput(TOO_DEEP)
            if values + inside > most or containers > MAX_CONTAINERS:
                raise InvalidInput(TOO_MANY_VALUES if values + inside > most else TOO_MANY_CONTAINERS)
    except (IndexError, struct.error):
        position = len(data) + 1
    if position > len(data):
        raise InvalidInput("the body is not valid msgpack: a length is larger than the data")
    return values


def _step(data: bytes | memoryview, position: int) -> tuple[int, int | None]:
    """Return the position after the value (after the header of a container), and a container's number of values."""
    tag = data[position]
    position += 1
    if tag < 0x80 or tag >= 0xE0:
        return position, None
    if tag < 0x90:
        return position, 2 * (tag & 0xF)
    if tag < 0xA0:
        return position, tag & 0xF
    if tag < 0xC0:
        return position + (tag & 0x1F), None
    if tag in _COUNTS:
        form, each = _COUNTS[tag]
        [count] = struct.unpack_from(form, data, position)
        return position + struct.calcsize(form), each * count
    if tag in _LENGTHS:
        form, between = _LENGTHS[tag]
        [length] = struct.unpack_from(form, data, position)
        return position + struct.calcsize(form) + between + length, None
    return position + _SIZES.get(tag, 0), None
