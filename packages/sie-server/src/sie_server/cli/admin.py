"""`sie-server admin`: load, unload, swap and show models of a running server, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.parse import quote

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from sie_server.cli.console import errors, print_rows, write, write_json
from sie_server.cli.remote import Json, Remote, url_option
from sie_server.logs import escaped

POLL_S = 0.3
HEADER = ("id", "state", "progress", "pinned", "MiB", "source", "last error")
KEY_HEADER = (
    *("name", "scopes", "requests", "refused", "tokens", "in progress", "requests left", "tokens left"),
)
PHASES = {
    "fetch": "downloading",
    "room": "waiting for memory",
    "load": "reading weights",
    "measure": "measuring",
    "probe": "trying out",
    "replay": "replaying requests",
}


@click.group()
def admin() -> None:
    """Load, unload and swap models of a running server, and show the use of its API keys.

    The key is read from SIE_ADMIN_KEY, or else from SIE_API_KEY.
    """


def _remote(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands have."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the server's answer")(command)
    return url_option(command)


@admin.command()
@click.argument("model")
@click.option(
    "--source", help="Hub id, or directory on the server; required for a model that the server does not know"
)
@click.option("--revision", help="Branch, tag or commit of a hub id")
@click.option(
    "--pin/--no-pin", default=None, help="Exempt the model from automatic unloading; --no-pin ends this"
)
@_remote
def load(remote: Remote, as_json: bool, **body: Any) -> None:
    """Load a model now instead of on first use."""
    _do(remote, "load", body, as_json)


@admin.command()
@click.argument("model")
@_remote
def unload(remote: Remote, as_json: bool, **body: Any) -> None:
    """Free a model's memory after its running requests; the next request loads it again."""
    _do(remote, "unload", body, as_json)


@admin.command()
@click.argument("model")
@click.argument("source")
@click.option("--revision", help="Branch, tag or commit of a hub id")
@click.option(
    "--replay",
    type=click.IntRange(1, 10_000),
    help="First compare both versions on the last requests, at most this many; without --max-difference, do not swap",
)
@click.option(
    "--max-difference",
    type=click.FloatRange(0, 1),
    help="With --replay: swap only if at most this share of document pairs has another order",
)
@_remote
def swap(remote: Remote, as_json: bool, **body: Any) -> None:
    """Replace a model's weights with those of SOURCE while it serves.

    The exit status is 1 if the versions differ by more than --max-difference.
    """
    answer = _do(remote, "swap", body, as_json)
    with remote.understood("/v1/admin/swap"):
        report: Json = answer.get("replay") or {}
        if report and not as_json:
            write("".join(f"{line}\n" for line in _replay_lines(report)))
        failed = report and not report["switched"] and body["max_difference"] is not None
    if failed:
        raise SystemExit(1)


@admin.command("load-adapter")
@click.argument("model")
@click.argument("adapter")
@click.argument("source")
@_remote
def load_adapter(remote: Remote, as_json: bool, **body: Any) -> None:
    """Load a LoRA ADAPTER for MODEL from SOURCE, a hub id or a directory on the server."""
    _do(remote, "adapters/load", body, as_json)


@admin.command("unload-adapter")
@click.argument("model")
@click.argument("adapter")
@_remote
def unload_adapter(remote: Remote, as_json: bool, **body: Any) -> None:
    """Free the memory of a LoRA ADAPTER of MODEL."""
    _do(remote, "adapters/unload", body, as_json)


@admin.command()
@click.option("--all", "everything", is_flag=True, help="Include models that have not been requested yet")
@_remote
def models(remote: Remote, as_json: bool, everything: bool) -> None:
    """List the server's models and their states, one per line; `admin model ID` shows one in full.

    Columns, separated by tabs unless stdout is a terminal: id, state, progress, pinned, MiB, source, last error.
    """
    answer = remote.ask("/v1/models", timeout=60)
    with remote.understood("/v1/models"):
        infos = answer["models"]
        shown = [info for info in infos if everything or info["state"] != "available"]
        rows = [_row(info) for info in shown]
    if as_json:
        write_json(shown)
        return
    print_rows(HEADER, rows)
    if len(shown) < len(infos):
        click.echo(
            f"{len(infos) - len(shown)} more models are known and not loaded; --all lists them", err=True
        )


def _row(info: Json) -> list[str]:
    pinned = "yes" if info["pinned"] else "-"
    size = f"{info['memory_bytes'] / 2**20:.0f}"
    progress = how_far(info["progress"]) if info["progress"] else "-"
    texts = (str(info[key] or "-") for key in ("source", "last_error"))
    return [str(info["name"]), str(info["state"]), progress, pinned, size, *texts]


@admin.command()
@click.argument("model")
@_remote
def model(remote: Remote, as_json: bool, model: str) -> None:
    """Show one model in full: one field per line, the whole last error included."""
    path = f"/v1/models/{quote(model, safe='/:')}"
    info = remote.ask(path, timeout=60)
    with remote.understood(path):
        if not info["name"]:
            raise ValueError
    if as_json:
        write_json(info)
        return
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in info.items()}
    write("".join(f"{name}: {escaped(text)}\n" for name, text in texts.items()))


@admin.command()
@_remote
def keys(remote: Remote, as_json: bool) -> None:
    """Show the use of the server's API keys since its start, one per line; --json also shows their limits.

    Columns, separated by tabs unless stdout is a terminal: name, scopes, requests, refused, tokens, in progress, and
    what is left now of requests and tokens (-: unlimited).
    """
    answer = remote.ask("/v1/admin/keys", timeout=60)
    with remote.understood("/v1/admin/keys"):
        rows = [_key_row(key) for key in answer["keys"]]
    if as_json:
        write_json(answer["keys"])
    else:
        print_rows(KEY_HEADER, rows)


def _key_row(key: Json) -> list[str]:
    used = (key["requests"], sum(key["refused"].values()), key["tokens"], key["in_progress"])
    left = ("-" if key[name] is None else str(key[name]) for name in ("requests_left", "tokens_left"))
    return [key["name"], "+".join(key["scopes"]), *map(str, used), *left]


def how_far(progress: Json) -> str:
    """Return the phase of a load, and the percentage of bytes read once the total is known."""
    done, total = progress["bytes_done"], progress["bytes_total"]
    return f"{_phase(progress)} {done / total:.0%}" if total else _phase(progress)


def _phase(progress: Json) -> str:
    return str(PHASES.get(progress["phase"], progress["phase"]))


def _replay_lines(report: Json) -> Iterator[str]:
    yield f"switched\t{'yes' if report['switched'] else 'no'}"
    yield f"requests\t{report['requests']}"
    for name in (
        "difference",
        "kendall_tau",
        "top10_overlap",
        "score_shift",
        "largest_shift",
        "latency_ratio",
    ):
        value = report[name]
        yield f"{name}\t{'-' if value is None else f'{value:.4f}'}"
    yield f"refused\t{report['refused_requests']}"
    for each in report["refused"]:
        yield f"refused: {each['requests']} × {escaped(each['reason'])}"
    for note in report["notes"]:
        yield f"note: {escaped(note)}"


def _do(remote: Remote, action: str, body: Json, as_json: bool) -> Json:
    given = {name: value for name, value in body.items() if value is not None}
    path = f"/v1/admin/{action}"
    answer = _watched(remote, body["model"], lambda: remote.ask(path, given))
    with remote.understood(path):
        line = _summary(answer)
    if as_json:
        write_json(answer)
    else:
        write(f"{escaped(line)}\n")
    return answer


def _summary(answer: Json) -> str:
    size = answer["memory_bytes"] / 2**20
    revision = f" at {answer['revision']}" if answer["revision"] else ""
    pinned = ", pinned" if answer["pinned"] else ""
    loaded = [adapter["name"] for adapter in answer["adapters"] if adapter["loaded"]]
    adapters = f", adapters {' '.join(loaded)}" if loaded else ""
    return (
        f"{answer['model']}: {answer['state']}, {size:.0f} MiB{pinned}{adapters}, from {answer['source']}{revision}, "
        f"after {answer['seconds']:.1f} s"
    )


def _watched(remote: Remote, model: str, work: Callable[[], Json]) -> Json:
    """Do the work while showing a progress bar on a terminal. Ctrl-C stops the display, not the server's work."""
    name = TextColumn("{task.description}", markup=False)  # an id may contain brackets
    columns = (name, BarColumn(), DownloadColumn(), TimeElapsedColumn())
    path = f"/v1/models/{quote(model, safe='/:')}"
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task, running = bar.add_task(model, total=None), _in_background(work)
        while not wait([running], timeout=POLL_S).done:
            if bar.disable:
                continue
            # an error here shows in the result of the work as well
            with suppress(click.ClickException), remote.understood(path):
                if now := remote.ask(path, timeout=10).get("progress"):
                    done, total = int(now["bytes_done"]), now["bytes_total"]
                    text = f"{model}: {_phase(now)}"
                    bar.update(task, description=text, completed=done, total=total and int(total))
        return running.result()


def _in_background(work: Callable[[], Json]) -> Future[Json]:
    """Run `work` in a daemon thread, which does not delay the end of the process."""
    result: Future[Json] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result
