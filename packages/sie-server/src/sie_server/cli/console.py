"""Consoles for the command line: results go to stdout, everything else to stderr; texts are printed unchanged."""

from __future__ import annotations

from rich.console import Console

output = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)
