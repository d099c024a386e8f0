"""The head of a request: its size, its framing, and the same head without an offer to change the protocol. Pure."""

from __future__ import annotations

import re

from sie_server.errors import HeadersTooLarge, InvalidInput, MethodNotAllowed, SIEError

MAX_HEAD = 64 * 1024  # bytes of the request line and all headers
MAX_HEADERS = 200
NO_PATH = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")  # an absolute address without a path
LENGTH = re.compile(rb"[0-9]{1,19}")
UPGRADE = (b"upgrade", b"http2-settings")  # also as options of Connection
TLS = re.compile(rb"\x16\x03[\0-\x04]")  # record of a handshake, any version
HTTP2 = b"PRI * HTTP/2"  # the preface of a client that does not ask first (RFC 9113, 3.4)
Headers = list[tuple[bytes, bytes]]


def too_large() -> HeadersTooLarge:
    """Return the error for a head, or the trailers after a body, that exceed the limits."""
    return HeadersTooLarge(
        f"the request line and the headers are larger than {MAX_HEAD // 1024} KiB, or there are more than "
        f"{MAX_HEADERS} headers; send fewer or shorter headers"
    )


def check(method: bytes, version: str, url: bytes, headers: Headers) -> SIEError | None:
    """Return the error of a complete head that the parser accepts, or None."""
    size = len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > MAX_HEAD or len(headers) > MAX_HEADERS:
        return too_large()
    if version not in ("1.0", "1.1"):
        return InvalidInput(f"HTTP/{version} is not supported; send HTTP/1.1")
    if method == b"CONNECT":
        return MethodNotAllowed("CONNECT is not allowed; this server is not a proxy")
    if NO_PATH.fullmatch(url):
        return InvalidInput(
            "the request line contains an address without a path; send at least a slash after it"
        )
    lengths = [value for name, value in headers if name == b"content-length"]
    if any(not LENGTH.fullmatch(value) for value in lengths):
        return InvalidInput("the header Content-Length is not a number of at most 19 digits")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        return InvalidInput("send one of Content-Length and Transfer-Encoding, once")
    if codings and (version == "1.0" or codings[0].strip().lower() != b"chunked"):
        return InvalidInput(
            "the only supported Transfer-Encoding is chunked, in HTTP/1.1; send the body unencoded"
        )
    return None


def without_upgrade(method: bytes, version: str, url: bytes, headers: Headers) -> bytes:
    """Return a checked head without its offer to change the protocol, which a server may ignore (RFC 9110, 7.8).

    Everything else stays, in the same order, so the head keeps its meaning. The parser has made sure that no part of
    it contains a line break.
    """
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(
                option for option in value.split(b",") if option.strip().lower() not in UPGRADE
            )  # fmt: skip
        if name not in UPGRADE and (name != b"connection" or value.strip()):
            lines.append(b"%s: %s" % (name, value.strip()))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def not_http(piece: bytes, error: Exception) -> InvalidInput:
    """Return the error for bytes that the parser refused with `error`; the start of other protocols is named."""
    if TLS.match(piece):
        return InvalidInput(
            "the bytes are TLS, and this port serves plain HTTP; use http:// instead of https://"
        )
    if piece.startswith(HTTP2):
        return InvalidInput("the bytes are HTTP/2, which this server does not have; use HTTP/1.1")
    return InvalidInput(f"the bytes are not an HTTP/1.1 request: {error}")
