"""The socket that the server listens on."""

from __future__ import annotations

import errno
import socket

from sie_server.config import ConfigError

OF_PORTS = (errno.EADDRINUSE, errno.EACCES)  # errors of `bind` that another port avoids
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


class ServerFailed(ConfigError):
    """The server cannot start or cannot continue; the message is one line for the user."""


def url_of(host: str, port: int) -> str:
    """Return the URL for a browser on this machine; an address that stands for all interfaces is localhost."""
    if host in ("0.0.0.0", "::", ""):
        return f"http://localhost:{port}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. It is bound before models load, so that a port in use is reported at once.

    Raises:
        ServerFailed: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets that name their protocol. Without, the body of
    # an answer would wait for the client to acknowledge the head, which takes up to 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # several sockets can bind one port, but only one can listen
    except OSError as error:
        listener.close()
        other = "port with --port" if error.errno in OF_PORTS else "address with --host"
        raise ServerFailed(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another {other}"
        ) from None
    listener.set_inheritable(True)
    return listener
