"""`sie-server admin`: load, unload and swap models of a running server, over HTTP.

Python's own HTTP client is enough for this. It follows no redirect, so a key goes nowhere but where it was meant to go.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any
from urllib.parse import quote, urlsplit

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sie_server.cli.console import errors, output

Json = dict[str, Any]
POLL_S = 0.3
PHASES = {
    "fetch": "downloading",
    "room": "waiting for memory",
    "load": "reading weights",
    "measure": "measuring",
    "probe": "trying out",
}


class Remote:
    """A running server."""

    def __init__(self, url: str) -> None:
        """Raises UsageError for a URL or a key that cannot work."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or port == -1:
            raise click.UsageError("--url (SIE_BASE_URL) is not like http://HOST:PORT")
        key = os.environ.get("SIE_ADMIN_KEY") or os.environ.get("SIE_API_KEY") or ""
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise click.UsageError(
                "the key in SIE_ADMIN_KEY or SIE_API_KEY has characters no header can carry"
            )
        self._https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._shown, self._path = (
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            parts.path.rstrip("/"),
        )
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: Json | None = None, timeout: float | None = None) -> Json:
        """POST the body, or GET without one; the answer of a 200.

        Raises:
            ClickException: no answer, or another one; says which.
        """
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout)
        sent = json.dumps(body) if body is not None else None
        try:
            connection.request("POST" if sent else "GET", self._path + path, sent, self._headers)
            answer = connection.getresponse()
            value = _object(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise click.ClickException(
                f"no answer from {self._shown}: {error or type(error).__name__}; "
                "is the server running there? --url or SIE_BASE_URL names another"
            ) from None
        finally:
            connection.close()
        if answer.status != 200 or value is None:
            target = (
                f" and sends elsewhere, to {answer.headers['location']}" if answer.headers["location"] else ""
            )
            raise click.ClickException(_complaint(answer.status, value, self._at(path), target))
        return value

    @contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Around the reading of an answer: one of another shape is another server's, and said to be so."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            raise click.ClickException(_complaint(200, None, self._at(path))) from None

    def _at(self, path: str) -> str:
        return f"{self._shown}{self._path}{path}"


def _complaint(status: int, value: Json | None, where: str, target: str = "") -> str:
    error = (value or {}).get("error")
    if not isinstance(error, dict) or "message" not in error:
        return f"{where} answered {status}{target}, which is not how a SIE server answers; is --url right?"
    hint = "; `sie-server admin` sends the key in SIE_ADMIN_KEY, else that in SIE_API_KEY"
    return f"{error['message']}{hint if status in (401, 403) else ''} ({status} {error.get('code')})"


def _object(content: bytes) -> Json | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@click.group()
def admin() -> None:
    """Load, unload and swap models of a running server.

    The key comes from SIE_ADMIN_KEY, else from SIE_API_KEY.
    """


def _remote(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the server's answer")(command)
    return click.option(
        "--url",
        "remote",
        envvar="SIE_BASE_URL",
        default="http://127.0.0.1:8080",
        callback=lambda _context, _option, url: Remote(url),
        help="Where the server is  [SIE_BASE_URL; default: http://127.0.0.1:8080]",
    )(command)


@admin.command()
@click.argument("model")
@click.option(
    "--source", help="Hub id, or a directory of the server's; needed when the model is not known yet"
)
@click.option("--revision", help="Branch, tag or commit of a hub id")
@click.option("--pin/--no-pin", default=None, help="Never unload it by itself; --no-pin: do so again")
@_remote
def load(remote: Remote, as_json: bool, **body: Any) -> None:
    """Load a model now rather than on first use."""
    _do(remote, "load", body, as_json)


@admin.command()
@click.argument("model")
@_remote
def unload(remote: Remote, as_json: bool, **body: Any) -> None:
    """Let running requests finish and free a model's memory; the next request loads it again."""
    _do(remote, "unload", body, as_json)


@admin.command()
@click.argument("model")
@click.argument("source")
@click.option("--revision", help="Branch, tag or commit of a hub id")
@_remote
def swap(remote: Remote, as_json: bool, **body: Any) -> None:
    """Replace a model's weights with those of SOURCE while it serves."""
    _do(remote, "swap", body, as_json)


@admin.command("load-adapter")
@click.argument("model")
@click.argument("adapter")
@click.argument("source")
@_remote
def load_adapter(remote: Remote, as_json: bool, **body: Any) -> None:
    """Load a LoRA ADAPTER for MODEL from SOURCE, a hub id or a directory of the server's."""
    _do(remote, "adapters/load", body, as_json)


@admin.command("unload-adapter")
@click.argument("model")
@click.argument("adapter")
@_remote
def unload_adapter(remote: Remote, as_json: bool, **body: Any) -> None:
    """Free a LoRA ADAPTER of MODEL."""
    _do(remote, "adapters/unload", body, as_json)


@admin.command()
@click.option("--all", "everything", is_flag=True, help="Also those nobody has asked for yet")
@_remote
def models(remote: Remote, as_json: bool, everything: bool) -> None:
    """List the server's models and where they stand."""
    answer = remote.ask("/v1/models", timeout=60)
    with remote.understood("/v1/models"):
        infos = answer["models"]
        shown = [info for info in infos if everything or info["state"] != "available"]
        rows = [_row(info) for info in shown]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table("id", "state", "progress", "pinned", "MiB", "source")
    for row in rows:
        table.add_row(*row)
    output.print(table)
    if len(shown) < len(infos):
        errors.print(f"{len(infos) - len(shown)} more are known and not loaded; --all lists them")


def _row(info: Json) -> list[str]:
    state = f"{info['state']}: {info['last_error']}" if info["last_error"] else str(info["state"])
    pinned, size = "yes" if info["pinned"] else "", f"{info['memory_bytes'] / 2**20:.0f}"
    progress = how_far(info["progress"]) if info["progress"] else ""
    return [str(info["name"]), state, progress, pinned, size, str(info["source"] or "")]


def how_far(progress: Json) -> str:
    """What a load is at, and the part of the bytes that it has read, once their number is known."""
    done, total = progress["bytes_done"], progress["bytes_total"]
    return f"{_doing(progress)}{f' {done / total:.0%}' if total else ''}"


def _doing(progress: Json) -> str:
    return str(PHASES.get(progress["phase"], progress["phase"]))


def _do(remote: Remote, action: str, body: Json, as_json: bool) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    path = f"/v1/admin/{action}"
    answer = _watched(remote, body["model"], lambda: remote.ask(path, given))
    with remote.understood(path):
        line = _summary(answer)
    click.echo(json.dumps(answer, indent=2) if as_json else line)


def _summary(answer: Json) -> str:
    size, revision = answer["memory_bytes"] / 2**20, f" at {answer['revision']}" if answer["revision"] else ""
    pinned = ", pinned" if answer["pinned"] else ""
    loaded = [adapter["name"] for adapter in answer["adapters"] if adapter["loaded"]]
    adapters = f", adapters {' '.join(loaded)}" if loaded else ""
    return (
        f"{answer['model']}: {answer['state']}, {size:.0f} MiB{pinned}{adapters}, from {answer['source']}{revision}, "
        f"after {answer['seconds']:.1f} s"
    )


def _watched(remote: Remote, model: str, work: Callable[[], Json]) -> Json:
    """The result of the work, with a bar meanwhile when somebody sees it. Ctrl-C stops watching, not the server."""
    name = TextColumn("{task.description}", markup=False)  # an id may have brackets
    columns = (name, BarColumn(), DownloadColumn(), TimeElapsedColumn())
    path = f"/v1/models/{quote(model, safe='/:')}"
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task, running = bar.add_task(model, total=None), _in_background(work)
        while not wait([running], timeout=POLL_S).done:
            if bar.disable:
                continue
            with suppress(click.ClickException), remote.understood(path):  # the work itself will tell
                if now := remote.ask(path, timeout=10).get("progress"):
                    done, total = int(now["bytes_done"]), now["bytes_total"]
                    text = f"{model}: {_doing(now)}"
                    bar.update(task, description=text, completed=done, total=total and int(total))
        return running.result()


def _in_background(work: Callable[[], Json]) -> Future[Json]:
    """Run it in a thread that does not keep the process from ending."""
    result: Future[Json] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result
