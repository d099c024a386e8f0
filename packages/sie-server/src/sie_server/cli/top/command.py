"""The command: reads `/metrics` and `/v1/models` of a running server again and again."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live

from sie_server.cli.console import write
from sie_server.cli.remote import Remote, url_option
from sie_server.cli.top.samples import Between, Scrape
from sie_server.cli.top.view import Section, lines, sections, tables

TIMEOUT_S = 10.0


@click.command()
@url_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks; rates and quantiles are those of this time",
)
@click.option(
    "--once", is_flag=True, help="Print one table and end; lines with tabs unless stdout is a terminal"
)
def top(remote: Remote, interval: float, once: bool) -> None:
    """Show the traffic, latency, queue, models and errors of a running server until Ctrl-C.

    The key is read from SIE_ADMIN_KEY, or else from SIE_API_KEY. The memory of models, the queue and requests in flight
    are those of the moment.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    if not once and not on_terminal:
        raise click.UsageError("stdout is not a terminal; for scripts use --once")
    watch = Watch(remote)
    try:
        watch.look()  # an error here is that of the command
        if once:
            time.sleep(interval)
            found = watch.look()
            if on_terminal:
                Console(highlight=False).print(tables(found, watch.status))
            else:
                write(lines(found))
        else:
            _show(watch, interval)
    except KeyboardInterrupt:
        return


def _show(watch: Watch, interval: float) -> None:
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        live.update(tables(watch.last, watch.status), refresh=True)
        while True:
            time.sleep(interval)
            live.update(screen(watch), refresh=True)


def screen(watch: Watch) -> RenderableType:
    """Return the figures of now, or the last ones if the server does not answer any longer."""
    try:
        return tables(watch.look(), watch.status)
    except click.ClickException as error:
        return tables(watch.last, f"{error.message}; trying again")


class Watch:
    """The looks at one server; each shows the time since the one before."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._before: Scrape | None = None
        self.last: list[Section] = []

    @property
    def status(self) -> str:
        """The line above the figures."""
        return f"{self._remote.shown}   {time.strftime('%H:%M:%S')}   Ctrl-C ends"

    def look(self) -> list[Section]:
        """Return the figures of the time since the last look. After the first look there are no rates yet.

        Raises:
            ClickException: the server did not answer, or is not a SIE server.
        """
        text = self._remote.text("/metrics", TIMEOUT_S)
        with self._remote.understood("/metrics"):
            now = Scrape.of(text, time.monotonic())
        answer: dict[str, Any] = self._remote.ask("/v1/models", timeout=TIMEOUT_S)
        with self._remote.understood("/v1/models"):
            self.last = sections(Between(self._before or now, now), answer["models"])
        self._before = now
        return self.last
