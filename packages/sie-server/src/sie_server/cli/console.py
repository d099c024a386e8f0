"""Where the command line writes: texts as they are, what is not the answer on stderr."""

from __future__ import annotations

from rich.console import Console

output = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)
