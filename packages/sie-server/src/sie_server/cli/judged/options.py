"""Options that the commands on files of queries share."""

from __future__ import annotations

import re

import click

qrels = click.option("--qrels", help="Other judgments: a file, or a name in the folder, such as `dev`")
depth = click.option(
    "--depth", type=click.IntRange(1), default=100, show_default=True, help="Candidates per query"
)
queries = click.option(
    "--queries", type=click.IntRange(1), metavar="N", help="Use N random queries of each set"
)


def _endpoint(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    if url is not None and not re.match(r"https?://[^/]", url):
        raise click.BadParameter("expected the form http://HOST:PORT")
    return url


endpoint = click.option(
    "--endpoint", callback=_endpoint, help="URL of a running server; default: run the models in this process"
)
deadline = click.option(
    "--deadline",
    type=click.FloatRange(1),
    default=900.0,
    show_default=True,
    help="Seconds for one request to the endpoint, its restarts included",
)
concurrency = click.option(
    "--concurrency", type=click.IntRange(1, 64), default=1, show_default=True, help="Requests at a time"
)
