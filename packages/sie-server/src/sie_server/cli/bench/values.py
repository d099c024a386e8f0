"""Values of options that click does not know."""

from __future__ import annotations

import os
import re

import click

MOST_CLIENTS, MOST_PHASES = 256, 8


def clients_of(_context: click.Context, _option: click.Parameter, value: str) -> list[int]:
    """Read numbers with commas. Raises BadParameter."""
    parts = value.split(",")
    numbers = [int(part) for part in parts if re.fullmatch(r"\s*[0-9]{1,4}\s*", part)]
    if len(numbers) != len(parts) or not all(1 <= number <= MOST_CLIENTS for number in numbers):
        raise click.BadParameter(f"expected numbers from 1 to {MOST_CLIENTS} with commas, such as 1,8,64")
    if len(numbers) > MOST_PHASES:
        raise click.BadParameter(f"at most {MOST_PHASES} numbers")
    return numbers


def key_of(_context: click.Context, _option: click.Parameter, name: str | None) -> str:
    """Return the API key in a variable; "" without a name. Raises BadParameter."""
    if name is None:
        return ""
    key = os.environ.get(name, "")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        problem = "has characters that a header cannot hold" if key else "is not set"
        raise click.BadParameter(f"the environment variable {name} {problem}")
    return key
