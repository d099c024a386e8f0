"""`sie-server bench`: latency and throughput of a rerank endpoint."""

from __future__ import annotations

import click

from sie_server.cli.bench.values import clients_of, key_of
from sie_server.cli.console import errors, print_rows, write, write_json
from sie_server.loadtest.dialects import DIALECTS

AUTO = "auto"
FORMATS = ("table", "markdown", "json")


@click.command("bench")
@click.option(
    "--endpoint", required=True, metavar="URL", help="The server to measure, such as http://HOST:PORT"
)
@click.option(
    "--dialect",
    type=click.Choice([AUTO, *DIALECTS]),
    default=AUTO,
    show_default=True,
    help="The endpoint's API; auto tries several and names the one that fits",
)
@click.option("--model", "-m", default="", metavar="ID", help="The model, under the endpoint's name for it")
@click.option(
    "--api-key-env",
    "key",
    metavar="NAME",
    callback=key_of,
    help="Environment variable with the API key; without this option no key is sent",
)
@click.option(
    "--clients",
    default="1,8,64",
    show_default=True,
    callback=clients_of,
    help="Numbers of clients, one phase each; a client sends its next request after the last answer",
)
@click.option(
    "--documents",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="Documents per request",
)
@click.option(
    "--words",
    type=click.IntRange(1, 5000),
    help="Words of every document; default: lognormal lengths with a median of 60",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="Length of a phase"
)
@click.option(
    "--requests",
    type=click.IntRange(1, 100_000),
    default=10_000,
    show_default=True,
    help="Most requests of a phase",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=60.0,
    show_default=True,
    help="Seconds for one request",
)
@click.option(
    "--seed", type=click.IntRange(0, 10**6), default=0, show_default=True, help="Seed of the random texts"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Form of the result",
)
def bench(
    endpoint: str,
    dialect: str,
    model: str,
    key: str,
    clients: list[int],
    documents: int,
    words: int | None,
    seconds: float,
    requests: int,
    timeout: float,
    seed: int,
    form: str,
) -> None:
    """Measure the latency and throughput of a rerank endpoint: SIE's, or any whose API SIE speaks.

    It is a load test: use it only on a server that you may load; hosted APIs bill for each request. It sends random
    English words and ends after a limited time. Requests that the endpoint refuses with 429 or 503 are counted. The
    exit status is 1 if requests fail for another reason, or if the endpoint stops answering.
    """
    from sie_server.loadtest.errors import LoadTestError
    from sie_server.loadtest.probe import probe
    from sie_server.loadtest.report import HEADER, as_dict, cells, failures, markdown, title
    from sie_server.loadtest.run import Plan, run

    outcomes = []
    try:
        found = probe(endpoint, None if dialect == AUTO else dialect, model, key, timeout)
    except LoadTestError as error:
        raise click.ClickException(str(error)) from None
    for phase, number in enumerate(clients):
        plan = Plan(number, documents, seconds, requests, seed * 100 + phase, words)
        with errors.status(f"{title(found)}: {number} clients …"):
            outcomes.append(run(found, plan))
        if outcomes[-1].gone:
            break
    if form == "json":
        write_json(as_dict(found, outcomes))
    elif form == "markdown":
        write(markdown(found, outcomes))
    else:
        click.echo(title(found), err=True)
        print_rows(HEADER, [cells(outcome) for outcome in outcomes])
    if form != "markdown":
        for line in failures(outcomes):
            click.echo(line, err=True)
    for outcome in outcomes:
        if outcome.problem:
            raise click.ClickException(f"{outcome.plan.clients} clients: {outcome.problem}")
