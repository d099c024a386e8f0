"""`sie-server top`: the figures of a running server, in the terminal."""

from sie_server.cli.top.command import top

__all__ = ["top"]
