"""Options that the commands on judged queries share."""

from __future__ import annotations

import click

qrels = click.option("--qrels", help="Other judgments: a file, or a name in the folder, such as `dev`")
depth = click.option(
    "--depth", type=click.IntRange(1), default=100, show_default=True, help="Candidates per query"
)
queries = click.option(
    "--queries", type=click.IntRange(1), metavar="N", help="Use N random queries of each set"
)
