"""The origins that may be configured, and preflights as browser clients of other vendors send them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from sie_server.api.edge.cors import MOST_NAMES, check_origins
from sie_server.config import ConfigError
from support.servers.inprocess import asking
from support.servers.loopback import refusal

PAGE, SHELL = "https://app.example.com", "capacitor://localhost"
OPENAI = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with asking({}, cors_origins=(PAGE, SHELL)) as client:
        yield client


def preflight(
    client: TestClient, origin: str, names: str = "", path: str = "/v1/embeddings", **more: str
) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", **more}
    if names:
        headers["access-control-request-headers"] = names
    return client.options(path, headers=headers)


@pytest.mark.parametrize("origin", [PAGE, SHELL])
@pytest.mark.parametrize(
    "names",
    [OPENAI, "x-api-key, x-client-name", "openai-beta,user-agent", "http-referer,x-title", "X-ODD!#$%&'*+.^_`|~", ""],
)  # fmt: skip
def test_an_allowed_origin_may_send_every_header(client: TestClient, origin: str, names: str) -> None:
    answer = preflight(client, origin, names)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {name.strip().lower() for name in names.split(",") if name} <= allowed
    assert "origin" in answer.headers["vary"].lower()
    assert "access-control-allow-private-network" not in answer.headers


def test_a_page_may_call_a_private_address(client: TestClient) -> None:
    answer = preflight(client, PAGE, **{"access-control-request-private-network": "true"})
    assert answer.status_code == 200 and answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    ("origin", "names", "method", "reason"),
    [
        ("https://evil.example.com", "content-type", "POST", "cors_origins"),
        ("null", "content-type", "POST", "cors_origins"),
        (f"{PAGE}.evil.example.com", "", "POST", "cors_origins"),
        (f"{PAGE}:8443", "", "POST", "cors_origins"),
        (PAGE, "content-type", "DELETE", "'DELETE'"),
        (PAGE, "a b", "POST", "'a b'"),
        (PAGE, ",".join(f"x-{i}" for i in range(MOST_NAMES + 1)), "POST", f"at most {MOST_NAMES}"),
    ],
)
def test_a_refused_preflight_says_why(
    client: TestClient, origin: str, names: str, method: str, reason: str
) -> None:
    answer = preflight(client, origin, names, **{"access-control-request-method": method})
    assert reason in refusal(answer, 400, "INVALID_INPUT")
    assert "access-control-allow-headers" not in answer.headers


def test_without_origins_a_preflight_is_refused_with_the_option() -> None:
    with asking({}) as client:
        assert "cors_origins is empty" in refusal(preflight(client, PAGE), 400, "INVALID_INPUT")
        assert "vary" not in client.get("/healthz").headers
        plain = client.options("/v1/embeddings")  # no preflight
        assert plain.status_code == 405 and plain.headers["allow"] == "POST"


def test_admin_routes_have_no_cors(client: TestClient) -> None:
    answer = preflight(client, PAGE, path="/v1/admin/load")
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


def test_answers_differ_by_origin(client: TestClient) -> None:
    for origin, allowed in ((PAGE, PAGE), (SHELL, SHELL), ("https://evil.example.com", None), (None, None)):
        answer = client.get("/v1/models", headers={"origin": origin} if origin else {})
        assert answer.status_code == 200 and answer.headers["vary"] == "Origin"
        assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(
    "origin",
    [
        "*", "https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "app://obsidian.md",
        "capacitor://localhost", "tauri://localhost", "chrome-extension://abcdefghijklmnop", "moz-extension://1f-2a",
        "vscode-webview://0a1b", "ionic://localhost", "file://", "https://xn--bcher-kva.example",
    ],
)  # fmt: skip
def test_a_valid_origin(origin: str) -> None:
    check_origins((origin,))


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("null", "every sandboxed frame"), ("https://*.example.com", "name each origin"),
        ("https://a.example:443", "use https://a.example"),
        ("http://a.example:80", "default port"), ("https://app.example.com/", "trailing slash"),
        ("app.example.com", "use the form"),
        ("https://App.example.com", "lower case"), ("https://bücher.example", "use the form"), ("", "use the form"),
        ("https://a.example,https://b.example", "repeat --cors-origins"), ("https://user@a.example", "use the form"),
    ],
)  # fmt: skip
def test_an_invalid_origin_is_refused_with_the_reason(origin: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin") as caught:
        check_origins((origin,))
    assert reason in str(caught.value)
