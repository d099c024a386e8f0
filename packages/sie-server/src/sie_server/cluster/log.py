"""The log of a process that Ray has started: the server's form, in Ray's files and on the terminal of `serve --ray`."""

from __future__ import annotations

import logging
import sys

from sie_server.config import ServerConfig
from sie_server.logs import PLAIN, JsonLines, OneLine, set_up


def log_to_ray(config: ServerConfig) -> None:
    """Write the log to stderr, which Ray collects.

    In a replica `sys.stderr` is not stderr: Serve sends it to its own log file, which the terminal does not show.
    """
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines() if config.log_format == "json" else OneLine(PLAIN))
    set_up(handler, config.log_level, config.log_format)
