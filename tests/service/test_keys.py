"""API keys on real servers: every route with every kind of key, from the environment and a file; none is logged."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sie_sdk import Item, SIEAsyncClient, SIEClient, errors
from support.servers import processes
from support.servers.processes import Server

MINI = "sie/mini-en"
INFER, ADMIN, WRONG = "infer-3f9a27c1d05b", "admin:8c1e64b7a290", "wrong-77d1f0a4c3e2"
SCORE = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}
OPEN = ("/healthz", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/static/swagger-ui.css")
INFERENCE = {
    f"/v1/score/{MINI}": SCORE,
    f"/v1/inspect/{MINI}": SCORE,
    f"/v1/encode/{MINI}": {"items": [{"text": "rain"}]},
    "/v1/embeddings": {"model": MINI, "input": "rain"},
    "/v1/models": None,
    f"/v1/models/{MINI}": None,
}
ADMINISTRATION = {
    "/v1/admin/load": {"model": MINI},
    "/v1/admin/unload": {"model": "no/model"},
    "/v1/admin/swap": {"model": "no/model", "source": "x"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module", params=["environment", "file"])
def guarded(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    """Serve with an infer key and an admin key; afterwards the log must not show any key."""
    env, args = {"SIE_API_KEYS": f"web:infer:{INFER},ops:admin:{ADMIN}"}, []
    if request.param == "file":
        path = folder / "keys.toml"
        digest = hashlib.sha256(ADMIN.encode()).hexdigest()
        path.write_text(
            f'[[key]]\nname = "web"\nkey = "{INFER}"\n'
            f'[[key]]\nname = "ops"\nkey_sha256 = "{digest}"\nscopes = ["admin"]\n'
        )
        env, args = {}, ["--api-keys-file", str(path)]
    with processes.running(folder, *args, "--log-level", "debug", env=env) as server:
        yield server
    assert not any(key in server.log for key in (INFER, ADMIN, WRONG))
    assert hashlib.sha256(ADMIN.encode()).hexdigest() not in server.log.lower()


def ask(server: Server, path: str, body: object, key: str | None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return server.get(path, headers) if body is None else server.post(path, body, headers=headers)


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == body["error"]["code"] == answer.headers["x-sie-error-code"] == code
    assert body["error"] == body["detail"] and body["error"]["message"]
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert answer.headers["x-sie-request-id"]
    assert not any(key in answer.text for key in (INFER, ADMIN, WRONG))


def test_every_route_with_every_key(guarded: Server) -> None:
    for path, body in {**INFERENCE, **ADMINISTRATION, "/nowhere": None}.items():
        for key in (None, WRONG, INFER[:-1], INFER + "0"):
            refused(ask(guarded, path, body, key), 401, "UNAUTHORIZED")
    for path, body in INFERENCE.items():
        for key in (INFER, ADMIN):
            assert ask(guarded, path, body, key).status_code == 200, path
    for path, body in ADMINISTRATION.items():
        refused(ask(guarded, path, body, INFER), 403, "FORBIDDEN")
        assert ask(guarded, path, body, ADMIN).status_code not in (401, 403), path
    for path in OPEN:
        for key in (None, WRONG, INFER):
            assert ask(guarded, path, None, key).status_code == 200, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Api-Key": INFER}, 200),  # Pinecone, Azure
        ({"X-API-Key": INFER}, 200),
        ({"api-key": INFER, "Authorization": f"Bearer {INFER}"}, 200),
        ({"X-API-Key": INFER, "Authorization": "Basic cHJveHk6cHJveHk="}, 200),  # a proxy's own scheme
        ({"Api-Key": WRONG}, 401),
        ({"Api-Key": ""}, 401),
        ({"Api-Key": INFER, "Authorization": f"Bearer {ADMIN}"}, 401),
        ({"Api-Key": INFER, "X-API-Key": WRONG}, 401),
        ({"X-API-Key": INFER, "Authorization": "Bearer"}, 401),
        ({"Ocp-Apim-Subscription-Key": INFER}, 401),
    ],
)
def test_the_headers_of_other_clients(guarded: Server, headers: dict[str, str], status: int) -> None:
    assert guarded.get("/v1/models", headers).status_code == status
    admin = guarded.post("/v1/admin/load", {"model": MINI}, headers=headers)
    assert admin.status_code == (403 if status == 200 else 401)  # the scope is checked, too


def test_a_caller_without_a_key_is_refused_before_the_body_is_read(guarded: Server) -> None:
    with guarded.raw() as connection:
        head = f"POST /v1/score/{MINI} HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"
        connection.sendall(head.encode() + b"{")  # the rest is never sent
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("value", [b"Bearer \xff\xfe\x80", b"\xc3\xa9", b"Bearer " + b"x" * 8000, b""])
def test_bytes_that_are_not_a_key(guarded: Server, value: bytes) -> None:
    with guarded.raw() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + value + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    assert guarded.get("/healthz").status_code == 200


async def test_the_client_sends_its_key(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIE_API_KEY", raising=False)
    for key, code in ((None, "UNAUTHORIZED"), (WRONG, "UNAUTHORIZED")):
        with SIEClient(guarded.base_url, api_key=key) as client, pytest.raises(errors.AuthError) as caught:
            client.score(MINI, Item(text="rain"), [Item(text="rain falls")])
        assert (caught.value.status, caught.value.code, caught.value.retryable) == (401, code, False)
        assert WRONG not in str(caught.value) and caught.value.request_id
    with SIEClient(guarded.base_url, api_key=INFER) as client:
        assert client.score(MINI, Item(text="rain"), [Item(text="rain falls")])["scores"]
    monkeypatch.setenv("SIE_API_KEY", INFER)
    async with SIEAsyncClient(guarded.base_url) as client:
        assert any(model["name"] == MINI for model in await client.list_models())
    monkeypatch.setenv("SIE_API_KEY", WRONG)
    async with SIEAsyncClient(guarded.base_url) as client:
        with pytest.raises(errors.AuthError):
            await client.get_model(MINI)


def test_inspect_and_embeddings_are_counted_like_other_routes(guarded: Server) -> None:
    for path, body in INFERENCE.items():
        if body is None:
            continue
        labels = {"route": path.split("/")[2], "model": MINI, "status": "200"}
        before = guarded.metric("sie_requests_total", **labels)
        assert ask(guarded, path, body, INFER).status_code == 200
        assert guarded.metric("sie_requests_total", **labels) == before + 1
    ask(guarded, "/v1/embeddings", {"model": "no/model", "input": "x"}, INFER)
    unknown = {"route": "embeddings", "model": "unknown", "status": "404"}
    assert guarded.metric("sie_requests_total", **unknown) == 1


# ── starting ──


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "at least 16"), ("tooshort", "at least 16"), (f"ops:boss:{ADMIN}", "scopes infer and admin")],
)
def test_a_server_with_unusable_keys_does_not_start(tmp_path: Path, value: str, words: str) -> None:
    result = processes.command_line(tmp_path, "serve", env={"SIE_API_KEYS": value}, within=30)
    assert result.returncode == 1 and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert not value or (value not in result.stderr and ADMIN not in result.stderr)


def test_a_key_is_not_taken_from_the_command_line_and_not_shown_in_the_help(tmp_path: Path) -> None:
    for args in (["--api-keys", ADMIN], [f"--api-keys={ADMIN}"]):
        result = processes.command_line(tmp_path, "serve", *args)
        assert result.returncode == 2 and "--api-keys" in result.stderr and ADMIN not in result.stderr
    shown = processes.command_line(tmp_path, "serve", "--help", env={"SIE_API_KEYS": f"a:infer:{INFER}"})
    assert "--api-keys-file" in shown.stdout and INFER not in shown.stdout


# ── without keys ──


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


@pytest.fixture(scope="module")
def open_server(folder: Path) -> Iterator[Server]:
    """Serve on every address without keys. The variable makes uvicorn trust proxy headers; the server must not."""
    env = {"FORWARDED_ALLOW_IPS": "*"}
    with processes.running(folder, "--host", "0.0.0.0", env=env) as server:
        yield server


def test_without_keys_admin_answers_only_this_machine(open_server: Server) -> None:
    assert "no API keys are configured" in open_server.log
    address = own_address()
    for path, body in ADMINISTRATION.items():
        assert open_server.post(path, body).status_code not in (401, 403)
        for headers in ({"x-forwarded-for": "127.0.0.1"}, {"host": "evil.example"}):
            refused(open_server.post(path, body, headers=headers), 403, "FORBIDDEN")
        if address:
            elsewhere = f"http://{address}:{open_server.port}"
            for headers in ({}, {"x-forwarded-for": "127.0.0.1"}, {"host": "localhost"}):
                refused(httpx.post(elsewhere + path, json=body, headers=headers), 403, "FORBIDDEN")
            assert httpx.post(f"{elsewhere}/v1/score/{MINI}", json=SCORE).status_code == 200
