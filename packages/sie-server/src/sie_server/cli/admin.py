"""`sie-server admin`: load, unload and swap models of a running server, over HTTP.

The standard library's HTTP client does not follow redirects, so the key is sent to the configured server only.
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
        """Raises UsageError for an invalid URL or key."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or port == -1:
            raise click.UsageError("--url (SIE_BASE_URL) does not have the form http://HOST:PORT")
        key = os.environ.get("SIE_ADMIN_KEY") or os.environ.get("SIE_API_KEY") or ""
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise click.UsageError(
                "the key in SIE_ADMIN_KEY or SIE_API_KEY has characters that a header cannot hold"
            )
        self._https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port
        self._path = parts.path.rstrip("/")
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without user name and password
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: Json | None = None, timeout: float | None = None) -> Json:
        """POST the body, or GET if it is None, and return the answer.

        Raises:
            ClickException: the server did not answer, or its answer is not a 200 with a JSON object.
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
                "check that the server is running, or set --url or SIE_BASE_URL"
            ) from None
        finally:
            connection.close()
        if answer.status != 200 or value is None:
            location = answer.headers["location"]
            target = f" and redirects to {location}" if location else ""
            raise click.ClickException(_complaint(answer.status, value, self._at(path), target))
        return value

    @contextmanager
    def understood(self, path: str) -> Iterator[None]:
        """Report an answer whose fields cannot be read as the answer of another program."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            raise click.ClickException(_complaint(200, None, self._at(path))) from None

    def _at(self, path: str) -> str:
        return f"{self._shown}{self._path}{path}"


def _complaint(status: int, value: Json | None, where: str, target: str = "") -> str:
    error = (value or {}).get("error")
    if not isinstance(error, dict) or "message" not in error:
        return f"{where} answered {status}{target}, which is not an answer of a SIE server; check --url"
    hint = ""
    if status in (401, 403):
        hint = "; `sie-server admin` sends the key in SIE_ADMIN_KEY, or else in SIE_API_KEY"
    return f"{error['message']}{hint} ({status} {error.get('code')})"


def _object(content: bytes) -> Json | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@click.group()
def admin() -> None:
    """Load, unload and swap models of a running server.

    The key is read from SIE_ADMIN_KEY, or else from SIE_API_KEY.
    """


def _remote(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands have."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the server's answer")(command)
    return click.option(
        "--url",
        "remote",
        envvar="SIE_BASE_URL",
        default="http://127.0.0.1:8080",
        callback=lambda _context, _option, url: Remote(url),
        help="URL of the server  [SIE_BASE_URL; default: http://127.0.0.1:8080]",
    )(command)


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
    """List the server's models and their states."""
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
        errors.print(f"{len(infos) - len(shown)} more models are known and not loaded; --all lists them")


def _row(info: Json) -> list[str]:
    state = f"{info['state']}: {info['last_error']}" if info["last_error"] else str(info["state"])
    pinned = "yes" if info["pinned"] else ""
    size = f"{info['memory_bytes'] / 2**20:.0f}"
    progress = how_far(info["progress"]) if info["progress"] else ""
    return [str(info["name"]), state, progress, pinned, size, str(info["source"] or "")]


def how_far(progress: Json) -> str:
    """Return the phase of a load, and the percentage of bytes read once the total is known."""
    done, total = progress["bytes_done"], progress["bytes_total"]
    return f"{_phase(progress)} {done / total:.0%}" if total else _phase(progress)


def _phase(progress: Json) -> str:
    return str(PHASES.get(progress["phase"], progress["phase"]))


def _do(remote: Remote, action: str, body: Json, as_json: bool) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    path = f"/v1/admin/{action}"
    answer = _watched(remote, body["model"], lambda: remote.ask(path, given))
    with remote.understood(path):
        line = _summary(answer)
    click.echo(json.dumps(answer, indent=2) if as_json else line)


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
