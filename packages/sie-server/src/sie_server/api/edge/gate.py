"""Who may ask for what, decided from the head of a request, before any of its body is read.

With API keys, a route that is not open needs a key with its scope. Without keys everything is open but the admin
routes: they answer only this machine, and no web page that a browser on this machine has open.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope as Asgi

from sie_server import keys
from sie_server.errors import Forbidden, Unauthorized
from sie_server.keys import ApiKey

OPEN = re.compile(r"/(healthz|livez|readyz|metrics|openapi\.json|docs|docs/static/.*)")
ADMIN = "/v1/admin/"
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")  # with its port
PROXY_HEADERS = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")
SEND_A_KEY = "send Authorization: Bearer KEY (SIE clients: api_key, or the variable SIE_API_KEY)"


class Gate:
    """Lets a request in or says why not."""

    def __init__(self, api_keys: tuple[ApiKey, ...]) -> None:
        self._keys = api_keys

    def admit(self, asgi: Asgi) -> str | None:
        """The name of the caller's key; None where none is needed.

        Raises:
            Unauthorized, Forbidden
        """
        path: str = asgi["path"]
        is_admin = path.startswith(ADMIN)
        if OPEN.fullmatch(path):
            return None
        if self._keys:
            key = self._key(asgi)
            if not key.may("admin" if is_admin else "infer"):
                raise Forbidden(f"the API key {key.name!r} lacks the scope 'admin', which {path} needs")
            return key.name
        if is_admin:
            _check_local(asgi)
        return None

    def _key(self, asgi: Asgi) -> ApiKey:
        sent = _headers(asgi, b"authorization")
        if not sent:
            raise Unauthorized(f"this server needs an API key: {SEND_A_KEY}")
        scheme, _, token = sent[0].partition(b" ")
        if len(sent) > 1 or scheme.lower() != b"bearer":
            raise Unauthorized(f"the header Authorization does not hold one bearer key: {SEND_A_KEY}")
        key = keys.find_key(self._keys, token.strip())
        if key is None:
            raise Unauthorized("the API key is not known to this server")
        return key


def _check_local(asgi: Asgi) -> None:
    """Without keys an admin is who sits at this machine.

    A proxy on this machine would make everybody local, so what came through one is refused where it can be told. A
    page whose name resolves to this machine (DNS rebinding) gives itself away by the Host header.
    """
    peer, hosts = (asgi.get("client") or ("", 0))[0], _headers(asgi, b"host")
    proxied = any(_headers(asgi, name) for name in PROXY_HEADERS)
    if proxied or not is_loopback(peer) or not all(_names_this_machine(host) for host in hosts):
        raise Forbidden(
            "without API keys, admin routes answer only requests made on this machine to localhost; to use them "
            "from elsewhere or through a proxy, start the server with SIE_API_KEYS=ops:admin:KEY"
        )


def _names_this_machine(host: bytes) -> bool:
    match = HOST.fullmatch(host.decode("latin-1").lower())
    name = (match[1] or match[2]) if match else ""
    return name == "localhost" or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether an address, IPv4, IPv6 or IPv4 within IPv6, is this machine itself."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _headers(asgi: Asgi, name: bytes) -> list[bytes]:
    return [value for key, value in asgi["headers"] if key == name]
