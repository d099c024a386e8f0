"""Authorise requests by path and headers, before the body is read.

With API keys, every route requires a key with its scope, except the probes and the routes in `OPEN`. Without keys only
the admin routes are restricted: they accept requests from this machine, and not from web pages open in a browser on it.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope as Asgi

from sie_server import keys
from sie_server.api.edge.paths import HEALTH, is_browsing
from sie_server.errors import Forbidden, Unauthorized
from sie_server.keys import ApiKey

OPEN = re.compile(r"/(metrics|openapi\.json|docs|docs/static/.*|playground/.*)")
ADMIN = "/v1/admin/"
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")  # value of a Host header
# headers that reverse proxies, load balancers and content delivery networks add; * stands for any end of a name
PROXY_HEADERS = (
    b"forwarded",
    b"via",
    b"x-forwarded-*",
    b"x-real-*",
    b"x-original-*",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-scheme",
    b"x-envoy-*",
    b"x-amzn-*",
    b"x-amz-cf-*",
    b"x-cloud-trace-context",
    b"x-appengine-*",
    b"x-azure-*",
    b"x-arr-*",
    b"cf-*",
    b"cdn-loop",
    b"true-client-ip",
    b"fastly*",
    b"fly*",
)
IS_PROXY_HEADER = re.compile(b"|".join(re.escape(name).replace(rb"\*", b".*") for name in PROXY_HEADERS))
# of the clients of Pinecone and Azure, and of API gateways
KEY_HEADERS = (b"api-key", b"x-api-key")
SEND_A_KEY = "send Authorization: Bearer KEY (SIE clients: api_key or the variable SIE_API_KEY)"


class Gate:
    """Checks the API key and scope of requests."""

    def __init__(
        self, api_keys: tuple[ApiKey, ...], *, open_inference: bool = False, playground: bool = True
    ) -> None:
        """With `open_inference` only admin routes require a key; a key that is sent must still be known.

        With `playground` the page at / needs no key.
        """
        self._keys, self._open_inference, self._playground = api_keys, open_inference, playground

    def admit(self, asgi: Asgi) -> str | None:
        """Return the name of the caller's key; None if the route needs no key.

        Raises:
            Unauthorized, Forbidden
        """
        path: str = asgi["path"]
        is_admin = path.startswith(ADMIN)
        if path in HEALTH or OPEN.fullmatch(path) or (self._playground and is_browsing(asgi)):
            return None
        if self._open_inference and not is_admin and not _sends_a_key(asgi):
            return None
        if self._keys:
            key = self._key(asgi)
            if not key.may("admin" if is_admin else "infer"):
                raise Forbidden(f"the API key {key.name!r} lacks the scope 'admin', which {path} requires")
            return key.name
        if is_admin:
            _check_local(asgi)
        return None

    def is_admin(self, asgi: Asgi) -> bool:
        """Return whether the gate would admit the caller to the admin routes."""
        try:
            if self._keys:
                return self._key(asgi).may("admin")
            _check_local(asgi)
        except (Unauthorized, Forbidden):
            return False
        return True

    def _key(self, asgi: Asgi) -> ApiKey:
        key = keys.find_key(self._keys, _sent_key(asgi))
        if key is None:
            raise Unauthorized("this server does not know the API key")
        return key


def _sends_a_key(asgi: Asgi) -> bool:
    return any(_headers(asgi, name) for name in (b"authorization", *KEY_HEADERS))


def _sent_key(asgi: Asgi) -> bytes:
    """Return the one key of a request: a bearer key, or that of a header in `KEY_HEADERS`.

    If there is such a header, another scheme of Authorization is a proxy's. Several headers may repeat the same key.

    Raises:
        Unauthorized: there is no key, or there are several.
    """
    authorization = _headers(asgi, b"authorization")
    schemes = [value.partition(b" ") for value in authorization]
    bearers = [token.strip() for scheme, _, token in schemes if scheme.lower() == b"bearer"]
    named = [value.strip() for name in KEY_HEADERS for value in _headers(asgi, name)]
    if not authorization and not named:
        raise Unauthorized(f"this server requires an API key; {SEND_A_KEY}")
    if len(authorization) > 1 or not (bearers or named):
        raise Unauthorized(f"the header Authorization does not contain exactly one bearer key; {SEND_A_KEY}")
    if len({*bearers, *named}) > 1:
        raise Unauthorized(f"the request contains several API keys that differ; {SEND_A_KEY}")
    return (bearers or named)[0]


def _check_local(asgi: Asgi) -> None:
    """Without keys, require that the caller is on this machine.

    A proxy on this machine would make all callers look local, so requests with a proxy's headers are rejected. The
    Host header reveals a web page whose host name resolves to this machine (DNS rebinding).
    """
    peer, hosts = (asgi.get("client") or ("", 0))[0], _headers(asgi, b"host")
    proxied = any(IS_PROXY_HEADER.fullmatch(name) for name, _ in asgi["headers"])
    if proxied or not is_loopback(peer) or not all(_names_this_machine(host) for host in hosts):
        raise Forbidden(
            "without API keys, admin routes accept only requests to localhost from the same machine; to use them "
            "from another machine or through a proxy, start the server with SIE_API_KEYS=ops:admin:KEY"
        )


def _names_this_machine(host: bytes) -> bool:
    match = HOST.fullmatch(host.decode("latin-1").lower())
    name = (match[1] or match[2]) if match else ""
    return name == "localhost" or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Return whether an address (IPv4, IPv6 or IPv4-mapped IPv6) is a loopback address."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _headers(asgi: Asgi, name: bytes) -> list[bytes]:
    return [value for key, value in asgi["headers"] if key == name]
