"""How commands that resume end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from sie_server.offline.errors import OfflineError


@contextmanager
def resumable() -> Iterator[None]:
    """Report errors of the work as one line, and after Ctrl-C that nothing is lost."""
    try:
        yield
    except OfflineError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted; start the same command again, and it resumes", err=True)
        raise
