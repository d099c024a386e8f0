"""The commands of `sie-server`.

`serve` runs the server, `score` (cli/score.py) reranks without one, `eval` and `calibrate` (cli/judged) measure models
on judged queries, `verify` compares a model with its reference, `models` (cli/models.py) lists the models that can be
served, `admin` (cli/admin.py) controls a running server, `top` (cli/top) shows its figures, and `bench` (cli/bench)
measures a rerank endpoint.

Slow imports are deferred until a command needs them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from typing import Any

import click

from sie_server import __version__
from sie_server.catalog import configured_adapters, known_models, named_model
from sie_server.cli.admin import admin
from sie_server.cli.bench import bench
from sie_server.cli.console import errors, log_to_stderr, unwritable, write
from sie_server.cli.judged import calibrate, evaluate
from sie_server.cli.models import models
from sie_server.cli.options import config_of, config_options
from sie_server.cli.score import score
from sie_server.cli.top import top
from sie_server.config import ConfigError, service_links
from sie_server.errors import SIEError
from sie_server.keys import read_keys
from sie_server.logs import report_end

log = logging.getLogger("sie_server.cli")
NO_REFERENCE = 3  # the exit status of `verify` where nothing was compared
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of writing to a file that stdout is
MOST_NAMED = 10  # variables in one line of the log


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sie-server")
def cli() -> None:
    """SIE: a self-hosted inference engine for reranking.

    Results go to stdout, messages to stderr. Exit status: 0 success, 1 failure, 2 wrong usage, 3 nothing to compare
    with (verify), 130 interrupted, 141 the reader of stdout has left.
    """


for command in (score, evaluate, calibrate, models, admin, top, bench):
    cli.add_command(command)


@cli.command()
@config_options()
def serve(config_file: str | None, **flags: Any) -> None:
    """Answer score and encode requests over HTTP until stopped."""
    if os.getpid() == 1:  # of a container: until the server has its handlers, the kernel would ignore SIGTERM
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    config = config_of(config_file, flags)
    # Configuration errors are reported before the slow imports; ignored files are logged later.
    known = known_models(config.model, config.models_dir, report=False)
    configured_adapters(config.adapter, known)
    read_keys(config)
    log_to_stderr(config.log_level, config.log_format)
    if links := service_links(os.environ):
        names = ", ".join(links[:MOST_NAMED])
        more = f" and {len(links) - MOST_NAMED} more" if len(links) > MOST_NAMED else ""
        log.info("ignoring variables that Kubernetes or Docker made for a service: %s%s", names, more)
    if config.ray:
        from sie_server.cluster.run import serve as run
    else:
        from sie_server.api.server import serve as run
    run(config)


@cli.command()
@click.argument("model", metavar="ID[@REVISION]|ID=DIRECTORY|ID=HUB_ID[@REVISION]")
@click.option("--pairs", type=click.IntRange(2), default=40, show_default=True, help="Texts to compare")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="Largest allowed difference")
@click.option("--offline", is_flag=True, help="Do not use the model hub")
def verify(model: str, pairs: int, tolerance: float, offline: bool) -> None:
    """Compare a model's raw scores with those of the library that its users run.

    The exit status is 1 if they differ, and 3 if there is no reference to compare with.
    """
    known = named_model(model)
    from sie_server.engine.storage.hub import stay_local
    from sie_server.engine.storage.source import fetch
    from sie_server.verify.references import CannotVerify
    from sie_server.verify.verify import verify as compare

    with errors.status(f"comparing {known.id} with its reference …"):
        directory = fetch(known.source, revision=known.revision, offline=offline)
        stay_local()
        try:
            report = compare(directory, pairs, known.template, known.truncation, known.label)
        except CannotVerify as error:
            click.echo(f"{known.id}: there is no reference to compare with: {error}", err=True)
            sys.exit(NO_REFERENCE)
    write(
        f"{known.id} against {report.reference}: {report.compared} of {report.pairs} texts, fp32\n"
        f"limit        {report.limit} tokens\n"
        f"queries      {_listed(report.queries)} tokens\n"
        f"texts        {_listed(report.documents)} tokens, and a sample of {pairs}\n"
        f"max |Δ|      {report.max_difference:.3g} (allowed {tolerance:g})\n"
        f"Kendall tau  {report.kendall_tau:.6f}\n"
        f"token ids    {report.first_token_difference or 'equal'}\n"
    )
    if not report.equal(tolerance):
        raise click.ClickException("the scores or token ids differ")


def _listed(lengths: tuple[int, ...]) -> str:
    return ", ".join(map(str, lengths))


def main() -> None:
    """Run the command line; an error that the user can mend is one line, with exit status 1, or 2 for wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        helps = isinstance(error, click.exceptions.NoArgsIsHelpError)  # a group without a command
        if isinstance(error, click.UsageError) and not helps:
            error.ctx = None  # otherwise click prints two usage lines before the error
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (ConfigError, SIEError) as error:
        report_end(str(error))
        sys.exit(1)
    except OSError as error:
        if error.filename is not None or error.errno not in DISK_ERRORS:
            raise
        failure = unwritable(error)  # --help and --version, which click prints
        failure.show()
        sys.exit(failure.exit_code)
