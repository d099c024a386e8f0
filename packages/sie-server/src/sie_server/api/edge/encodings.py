"""From the bytes of a body to JSON that a decoder reads: compressed bodies, byte order marks, other encodings.

A body is decoded if its bytes and two headers leave no doubt about its meaning. All others are refused with the reason,
because the decoder of JSON would report only the first symptom.
"""

from __future__ import annotations

import re
import zlib
from codecs import getincrementaldecoder

from sie_server.api.edge.bodies import too_long
from sie_server.errors import InvalidInput, UnsupportedEncoding, shown

CODINGS = ("gzip", "deflate")
SLICE = 2**20
GZIP, ZLIB, RAW = 31, 15, -15  # window sizes, by which zlib selects the format
BOM = b"\xef\xbb\xbf"
GZIP_MARK = b"\x1f\x8b"
# RFC 4627, 3: the first two characters of JSON are ASCII, so zeros show the encoding; or a byte order mark does
OTHERS = {
    "UTF-32": re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|\0\0\0.|[^\0]\0\0\0", re.DOTALL),
    "UTF-16": re.compile(rb"\xff\xfe|\xfe\xff|\0[^\0]|[^\0]\0", re.DOTALL),
}
CHARSET = re.compile(r"""charset\s*=\s*["']?([^"';,\s]+)""", re.IGNORECASE)
# Escapes of half a surrogate pair; a pair is a high and a low half. Both patterns start with a constant, for speed.
HIGH, LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"[dD][c-fC-F][0-9a-fA-F]{2}"
HALVES = (
    re.compile(HIGH + rb"(?!\\u" + LOW + rb")"),
    re.compile(rb"\\u(?<!" + HIGH + rb"\\u)" + LOW),
)
# The same in bytes: CESU-8, which Java and Python (`surrogatepass`) write in place of UTF-8
RAW_PAIR = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
RAW_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
MOST_HALVES = 10_000
BACKSLASH, ASIDE = (
    rb"\\",
    b"\0\0",
)  # an escaped backslash; what stands for it, as no JSON text contains a zero byte


def coding_of(header: str | None) -> str | None:
    """Return the coding that a Content-Encoding header names; None if the body is not compressed.

    Raises:
        UnsupportedEncoding: the server cannot read the coding.
    """
    names = [name.strip().lower().removeprefix("x-") for name in (header or "").split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > 1 or any(name not in CODINGS for name in names):
        raise UnsupportedEncoding(
            f"the header Content-Encoding is {shown(header)}; send the body uncompressed or with one of "
            f"{', '.join(CODINGS)}"
        )
    return names[0] if names else None


def inflated(body: bytes, coding: str | None, limit: int) -> bytes:
    """Return the body without its coding.

    Raises:
        InvalidInput: the body does not have the coding.
        InputTooLong: it is larger than `limit` bytes without it.
    """
    if coding is None:
        return body
    # deflate is zlib's format, but some clients leave its header out (RFC 9110, 8.4.1.2)
    is_raw = coding == "deflate" and (
        len(body) < 2 or body[0] & 15 != 8 or (body[0] * 256 + body[1]) % 31 != 0
    )
    parts, size, left = [], 0, body
    while left:
        stream = zlib.decompressobj(GZIP if coding == "gzip" else RAW if is_raw else ZLIB)
        try:
            part = stream.decompress(left, limit - size + 1)
        except zlib.error as error:
            raise InvalidInput(
                f"the body is not valid {coding}, which the header Content-Encoding names: {error}"
            ) from None
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_long(limit)
        if not stream.eof:
            raise InvalidInput(f"the body ends before its {coding} data does (header Content-Encoding)")
        left = stream.unused_data.lstrip(b"\0")  # gzip files may be joined, and padded with zeros
        if left and coding != "gzip":
            raise InvalidInput(f"{len(left)} bytes follow the {coding} data of the body")
    return b"".join(parts)


def readable(body: bytes) -> tuple[bytes, int]:
    """Return a JSON body without a byte order mark and without half surrogates, and the number of the latter.

    JavaScript writes such a half when a text was cut between two UTF-16 units. It becomes U+FFFD, as browsers do when
    they encode a text (https://infra.spec.whatwg.org/#javascript-string-convert).

    Raises:
        InvalidInput: the body is UTF-16, UTF-32 or gzip.
    """
    for name, start in OTHERS.items():
        if start.match(body):
            raise InvalidInput(f"the body is not valid JSON: it is {name}; send UTF-8")
    if body.startswith(GZIP_MARK):
        raise InvalidInput(
            "the body is not valid JSON: it is gzip; send the header Content-Encoding: gzip, too"
        )
    body, raw = _without_raw_halves(body.removeprefix(BOM))
    body, escaped = _without_escaped_halves(body)
    if raw + escaped >= MOST_HALVES:
        raise InvalidInput(
            f"the body contains {MOST_HALVES:,} or more halves of surrogate pairs, such as \\ud83d alone; cut texts "
            "between characters, not between UTF-16 units"
        )
    return body, raw + escaped


def _without_escaped_halves(body: bytes) -> tuple[bytes, int]:
    if (b"\\ud" not in body and b"\\uD" not in body) or b"\0" in body:
        return body, 0
    fixed, count = body.replace(BACKSLASH, ASIDE), 0  # so that each backslash left begins an escape
    for half in HALVES:
        fixed, replaced = half.subn(rb"\\ufffd", fixed, count=MOST_HALVES)
        count += replaced
    return (fixed.replace(ASIDE, BACKSLASH), count) if count else (body, 0)


def _without_raw_halves(body: bytes) -> tuple[bytes, int]:
    """Replace halves by U+FFFD and pairs by the character that they stand for. Pairs are not counted."""
    if b"\xed" not in body:
        return body, 0
    paired = RAW_PAIR.sub(lambda pair: _character(pair[0]), body, count=MOST_HALVES)
    return RAW_HALF.subn("\ufffd".encode(), paired, count=MOST_HALVES)


def _character(pair: bytes) -> bytes:
    halves = pair.decode("utf-8", "surrogatepass")
    return halves.encode("utf-16", "surrogatepass").decode("utf-16").encode()


def not_utf8(body: bytes, content_type: str | None) -> str | None:
    """Return why a JSON body is not UTF-8, with the charset in the header Content-Type as the cause.

    None if it is UTF-8, or if it is no text at all because its first byte is not ASCII.
    """
    if body[:1] >= b"\x80":
        return None
    decoder, start = getincrementaldecoder("utf-8")(), 0
    try:
        for start in range(0, len(body), SLICE):  # the whole text would take up to four times the memory
            decoder.decode(body[start : start + SLICE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        charset = CHARSET.search(content_type or "")
        named = f"; the header Content-Type names the charset {shown(charset[1])}" if charset else ""
        return (
            f"the body contains a string that is not valid UTF-8: {error.reason} after about {start + error.start:,} "
            f"bytes{named}; send JSON in UTF-8"
        )
    return None
