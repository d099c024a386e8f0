"""The error of work over files."""

from __future__ import annotations

import importlib
from typing import Any

from sie_server import install


class OfflineError(Exception):
    """The work cannot start or go on. The message is one line with the cause and the next step."""


class Refused(OfflineError):
    """A model does not accept the request; another request may succeed."""


def needed(module: str) -> Any:
    """Import a module of the extra `eval`, or the client.

    Raises:
        OfflineError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if module == "sie_sdk":  # no index has it
            raise OfflineError(
                "--endpoint needs the Python client: pip install ./packages/sie-sdk in a clone of this project"
            ) from None
        raise OfflineError(
            f"this needs the packages of the extra `eval` ({error.name or module} is missing): {install('eval')}"
        ) from None
