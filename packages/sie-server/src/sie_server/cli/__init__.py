"""The command line: `sie-server`."""

from sie_server.cli.commands import main

__all__ = ["main"]
