"""Admin routes and the command `sie-server admin` load, unload and swap models of running servers."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from sie_server.cli.admin import how_far
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually

INFER, ADMIN = "infer-3f9a27c1d05b", "admin-8c1e64b7a290"
ABSENT = "BAAI/bge-reranker-base"  # in the catalog, but not on this machine
TEXTS = ["rain falls", "stars burn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("admin")


@pytest.fixture(scope="module")
def local(folder: Path, models: Path) -> Iterator[Server]:
    """Serve without keys, so that only this machine may call admin routes."""
    args = ["--models-dir", str(models), "--dtype", "float32", "--batch-tokens", "2048"]
    with processes.running(folder, *args) as server:
        yield server


def admin(server: Server, action: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = server.post(f"/v1/admin/{action}", body)
    assert answer.status_code == status, answer.text
    decoded: dict[str, Any] = answer.json()
    return decoded


def state(server: Server, model: str) -> str:
    return str(server.get(f"/v1/models/{model}").json()["state"])


# ── HTTP ──


def test_load_unload_and_load_again(local: Server) -> None:
    assert state(local, "toy/bert") == "available"
    answer = admin(local, "load", model="toy/bert", pin=True)
    assert (answer["model"], answer["state"], answer["pinned"]) == ("toy/bert", "loaded", True)
    assert answer["memory_bytes"] > 0 and answer["seconds"] >= 0 and "toy/bert" in answer["source"]
    assert admin(local, "load", model="toy/bert", pin=False)["pinned"] is False
    answer = admin(local, "unload", model="toy/bert")
    assert (answer["state"], answer["memory_bytes"]) == ("available", 0)
    assert state(local, "toy/bert") == "available"
    assert local.scores("toy/bert", "rain", TEXTS)


def test_swap_changes_the_scores_and_a_source_makes_a_new_model(local: Server, models: Path) -> None:
    admin(local, "load", model="new/model", source=str(models / "toy/roberta"))
    before, wanted = local.scores("new/model", "rain", TEXTS), local.scores("toy/xlm-roberta", "rain", TEXTS)
    assert before == local.scores("toy/roberta", "rain", TEXTS) != wanted
    answer = admin(local, "swap", model="new/model", source=str(models / "toy/xlm-roberta"))
    assert answer["source"] == str(models / "toy/xlm-roberta") and answer["state"] == "loaded"
    assert local.scores("new/model", "rain", TEXTS) == wanted


@pytest.mark.parametrize(
    ("action", "body", "words"),
    [
        ("load", {}, "`model`"),
        ("load", {"model": ""}, "$.model"),
        ("load", {"model": 5}, "$.model"),
        ("load", {"model": "toy/bert", "sorce": "x"}, "`sorce`"),
        ("load", {"model": "toy/bert", "pin": "yes"}, "$.pin"),
        ("unload", {"model": "toy/bert", "force": True}, "`force`"),
        ("swap", {"model": "toy/bert"}, "`source`"),
        ("swap", {"model": "toy/bert", "source": ""}, "$.source"),
        ("swap", ["toy/bert"], "object"),
    ],
)
def test_invalid_admin_requests_are_refused(local: Server, action: str, body: Any, words: str) -> None:
    answer = local.post(f"/v1/admin/{action}", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_INPUT")
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", processes.MSGPACK]
)
def test_only_json_is_accepted_because_web_pages_cannot_send_it(
    local: Server, content_type: str | None
) -> None:
    answer = local.post("/v1/admin/load", b'{"model": "toy/bert"}', content_type=content_type)
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]
    headers = {"origin": "http://evil.example", **local.admin_headers}
    preflight = httpx.options(f"{local.base_url}/v1/admin/load", headers=headers)
    assert preflight.status_code == 405 and "access-control-allow-origin" not in preflight.headers
    accepted = local.post(
        "/v1/admin/load", b'{"model": "toy/bert"}', content_type="Application/JSON; charset=utf-8"
    )
    assert accepted.status_code == 200


def test_unknown_models_and_the_methods_of_the_routes(local: Server) -> None:
    for action, more in (("load", {}), ("unload", {}), ("swap", {"source": "BAAI/bge-reranker-base"})):
        assert admin(local, action, 404, model="toy/brt", **more)["code"] == "MODEL_NOT_FOUND"
    assert local.get("/v1/admin/load").status_code == 405
    assert local.post("/v1/admin/reload", {}).status_code == 404


def test_the_openapi_document_shows_the_routes(local: Server) -> None:
    document = local.get("/openapi.json").json()
    for action, kind in (("load", "AdminLoad"), ("unload", "AdminUnload"), ("swap", "AdminSwap")):
        route = document["paths"][f"/v1/admin/{action}"]["post"]
        assert list(route["requestBody"]["content"]) == [processes.JSON]
        schema = route["requestBody"]["content"][processes.JSON]["schema"]["$ref"]
        assert (
            schema.endswith(f"/{kind}Request")
            and schema.rpartition("/")[2] in document["components"]["schemas"]
        )
        assert {"200", "400", "401", "403", "404", "409", "502", "503"} <= set(route["responses"])
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_admin_requests_are_logged_with_their_caller(local: Server) -> None:
    admin(local, "load", model="toy/encoder")
    caller = "ops" if local.admin_key else "127.0.0.1"
    assert eventually(
        lambda: f"{caller} requested /v1/admin/load: AdminLoadRequest(model='toy/enc" in local.log
    )


# ── the command ──


def command(folder: Path, server: Server, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"SIE_BASE_URL": server.base_url, **server.admin_env, **env}
    return processes.command_line(folder, "admin", *args, env=env)


def test_the_command_does_the_same(tmp_path: Path, local: Server, models: Path) -> None:
    done = command(tmp_path, local, "load", "my/model", "--source", str(models / "toy/bert"), "--pin")
    assert (done.returncode, done.stderr) == (0, "")
    assert "my/model: loaded" in done.stdout and "pinned" in done.stdout and str(models) in done.stdout
    done = command(tmp_path, local, "swap", "my/model", str(models / "toy/roberta"), "--json")
    assert json.loads(done.stdout)["source"] == str(models / "toy/roberta")
    listed = command(tmp_path, local, "models", "--json")
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["my/model"]["pinned"] and "BAAI/bge-m3" not in rows
    table = command(tmp_path, local, "models", COLUMNS="250")
    assert "my/model" in table.stdout and "loaded" in table.stdout and "--all" in table.stderr
    [line] = [line for line in table.stdout.splitlines() if line.startswith("my/model\t")]
    assert line.split("\t")[1:4] == ["loaded", "-", "yes"] and str(models / "toy/roberta") in line.split("\t")
    everything = json.loads(command(tmp_path, local, "models", "--all", "--json").stdout)
    assert "BAAI/bge-m3" in {row["name"] for row in everything}
    done = command(tmp_path, local, "unload", "my/model")
    assert (done.returncode, done.stderr) == (0, "") and "available" in done.stdout


def test_a_failed_model_is_one_line_and_its_whole_error_is_shown_for_it_alone(
    tmp_path: Path, local: Server
) -> None:
    admin(local, "load", model=ABSENT, status=502)
    error = local.get(f"/v1/models/{ABSENT}", local.admin_headers).json()["last_error"]
    [line] = [
        one for one in command(tmp_path, local, "models").stdout.splitlines() if one.startswith(f"{ABSENT}\t")
    ]
    assert line.split("\t")[1] == "failed" and line.split("\t")[-1] == error
    shown = command(tmp_path, local, "model", ABSENT)
    assert f"last_error: {error}" in shown.stdout.splitlines() and "state: failed" in shown.stdout
    assert json.loads(command(tmp_path, local, "model", ABSENT, "--json").stdout)["last_error"] == error


def test_a_terminal_shows_a_download_and_ctrl_c_ends_only_the_command(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a hub that accepts connections and never answers
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with processes.running(tmp_path, "--batch-tokens", "512", env=env) as server:
            process = subprocess.Popen(
                [sys.executable, "-m", "sie_server", "admin", "load", ABSENT, "--url", server.base_url],
                env=processes.environment(tmp_path, {"TERM": "xterm", "COLUMNS": "100", **server.admin_env}),
                stderr=theirs,
            )
            seen = ""
            while "downloading" not in seen:
                seen += os.read(ours, 65536).decode()
            process.send_signal(signal.SIGINT)
            os.set_blocking(ours, False)

            def ended() -> bool:
                with suppress(BlockingIOError):  # a terminal that nothing reads from would block the process
                    os.read(ours, 65536)
                return process.poll() is not None

            assert eventually(ended) and process.returncode == 130
            assert state(server, ABSENT) == "loading"
            table = command(tmp_path, server, "models", COLUMNS="250").stdout
            assert re.search(rf"{ABSENT}\W+loading\W+downloading", table), table
            silent.close()
            assert server.scores("sie/mini-en", "rain", TEXTS)
    os.close(ours)
    os.close(theirs)


def test_a_terminal_shows_a_bar_and_then_one_line(tmp_path: Path, local: Server) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "sie_server", "admin", "load", "toy/roberta", "--url", local.base_url],
        env=processes.environment(tmp_path, {"TERM": "xterm", "COLUMNS": "100", **local.admin_env}),
        stdout=subprocess.PIPE,
        stderr=theirs,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "toy/roberta" in seen and "━" in seen
    assert done.stdout.startswith("toy/roberta: loaded") and len(done.stdout.splitlines()) == 1


def test_brackets_are_shown_literally(tmp_path: Path, local: Server, models: Path) -> None:
    ours, theirs = pty.openpty()
    for name in ("x[b]", "x[/b]"):  # unknown to the server
        done = subprocess.run(
            [sys.executable, "-m", "sie_server", "admin", "load", name, "--url", local.base_url],
            env=processes.environment(tmp_path, {"TERM": "xterm", "COLUMNS": "100", **local.admin_env}),
            stderr=theirs,
            timeout=60,
        )
        seen = os.read(ours, 65536).decode()
        assert done.returncode == 1 and "(404 MODEL_NOT_FOUND)" in seen, seen
        assert f"{name} \x1b" in seen  # followed by the bar
    os.close(theirs)
    os.close(ours)
    source = models / "a[b]/c[/b]"
    shutil.copytree(models / "toy/bert", source)
    admin(local, "load", model="my/brackets", source=str(source))
    assert str(source) in command(tmp_path, local, "models", COLUMNS="250").stdout


def test_the_progress_of_a_load() -> None:
    assert how_far({"phase": "load", "bytes_done": 430, "bytes_total": 1000}) == "reading weights 43%"
    assert how_far({"phase": "fetch", "bytes_done": 0, "bytes_total": None}) == "downloading"
    assert how_far({"phase": "another", "bytes_done": 0, "bytes_total": None}) == "another"


def complaint(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """Return the error, which must be one line on stderr, with nothing on stdout."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_errors_are_one_line(tmp_path: Path, local: Server) -> None:
    complaint(command(tmp_path, local, "load", "toy/brt"), "toy/bert", "404 MODEL_NOT_FOUND")
    complaint(command(tmp_path, local, "load", "a/b", "--source", "/etc"), "$.source", "400")
    complaint(command(tmp_path, local, "load", "x", "--url", processes.NOBODY), "no answer", "--url")
    for url in ("localhost:8080", "http://", "ftp://x", "http://x:port", "http://x?y=1"):
        complaint(command(tmp_path, local, "models", "--url", url), "http://HOST:PORT", status=2)
    complaint(command(tmp_path, local, "models", SIE_ADMIN_KEY="schlüssel"), "SIE_ADMIN_KEY", status=2)
    complaint(command(tmp_path, local, "swap", "toy/bert"), "SOURCE", status=2)
    complaint(command(tmp_path, local, "models", "--url", local.base_url + "/x"), "no route")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>hello</html>", ["answered 200", "--url"]),
        (404, b'{"error": "not here"}', ["answered 404", "--url"]),
        (301, b"", ["answered 301 and redirects to https://elsewhere.example/"]),
        (None, b"", ["no answer from http://127.0.0.1"]),
        (
            200,
            b'{"object": "list", "data": [{"id": "gpt"}]}',
            ["answered 200", "not an answer of a SIE server", "--url"],
        ),
        (
            200,
            b'{"models": [{"id": "gpt"}], "memory_bytes": "1"}',
            ["answered 200", "not an answer of a SIE server"],
        ),
        (
            200,
            b'{"models": 5, "memory_bytes": {}}',
            ["answered 200", "not an answer of a SIE server", "--url"],
        ),
    ],
)
def test_another_program_on_the_port(
    tmp_path: Path, local: Server, status: int | None, body: bytes, words: list[str]
) -> None:
    """A redirect must not receive the key, and no answer may cause a traceback."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status is None:
                return  # closes the connection
            self.send_response(status)
            if status == 301:
                self.send_header("Location", "https://elsewhere.example/")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        Thread(target=stranger.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{stranger.server_port}"
        complaint(command(tmp_path, local, "models", "--url", url), *words)
        complaint(command(tmp_path, local, "load", "x", "--url", url), *words)
        complaint(command(tmp_path, local, "load", "x", "--json", "--url", url), *words)
        stranger.shutdown()


def test_keys_come_from_the_environment(tmp_path: Path, models: Path) -> None:
    env = {"SIE_API_KEYS": f"web:infer:{INFER},ops:admin:{ADMIN}"}
    with processes.running(tmp_path, "--models-dir", str(models), "--batch-tokens", "512", env=env) as server:
        load = ["load", "toy/bert"]
        complaint(command(tmp_path, server, *load), "401 UNAUTHORIZED", "SIE_ADMIN_KEY")
        complaint(
            command(tmp_path, server, *load, SIE_API_KEY="x" * 20),
            "401 UNAUTHORIZED",
            "does not know the API key",
        )
        complaint(
            command(tmp_path, server, *load, SIE_API_KEY=INFER), "403 FORBIDDEN", "'web'", "SIE_ADMIN_KEY"
        )
        assert command(tmp_path, server, "models", SIE_API_KEY=INFER).returncode == 0
        done = command(tmp_path, server, *load, SIE_API_KEY=INFER, SIE_ADMIN_KEY=ADMIN)
        assert done.returncode == 0 and "loaded" in done.stdout
        assert eventually(lambda: "ops requested /v1/admin/load" in server.log)
        assert INFER not in server.log and ADMIN not in server.log
