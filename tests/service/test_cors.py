"""CORS: preflights, responses and refused origins of real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.servers import processes
from support.servers.processes import Server

PAGE, STRANGER = "https://app.example.com", "https://evil.example.com"
KEY = "infer-5b0c9e7a1f24"
SCORE = "/v1/score/sie/mini-en"
BODY = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve with a key, to pages of one origin."""
    env = {"SIE_CORS_ORIGINS": f"http://localhost:3000, {PAGE}", "SIE_API_KEYS": f"web:infer:{KEY}"}
    with processes.running(tmp_path_factory.mktemp("cors"), env=env) as server:
        yield server


def preflight(server: Server, path: str, origin: str) -> httpx.Response:
    asked = "authorization,content-type,x-sie-sdk-version"
    headers = {"access-control-request-method": "POST", "access-control-request-headers": asked}
    return httpx.options(server.base_url + path, headers={"origin": origin, **headers})


def allowed(answer: httpx.Response) -> str | None:
    origin: str | None = answer.headers.get("access-control-allow-origin")
    return origin


def test_a_preflight_needs_no_key_and_allows_the_clients_headers(shared: Server) -> None:
    answer = preflight(shared, SCORE, PAGE)
    assert answer.status_code == 200 and allowed(answer) == PAGE
    names = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {
        "authorization",
        "content-type",
        "x-sie-sdk-version",
        "x-sie-machine-profile",
        "x-sie-pool",
    } <= names
    assert "access-control-allow-credentials" not in answer.headers


def test_answers_and_errors_show_the_page_their_headers(shared: Server) -> None:
    for key, status in ((KEY, 200), ("wrong-key", 401)):
        answer = shared.post(SCORE, BODY, headers={"origin": PAGE, "authorization": f"Bearer {key}"})
        assert answer.status_code == status and allowed(answer) == PAGE
        shown = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        own = {name for name in answer.headers if name.startswith("x-")}
        assert own <= shown and "retry-after" in shown, own - shown


def test_other_origins_are_not_allowed(shared: Server) -> None:
    assert preflight(shared, SCORE, STRANGER).status_code == 400
    answer = shared.post(SCORE, BODY, headers={"origin": STRANGER, "authorization": f"Bearer {KEY}"})
    assert allowed(answer) is None


def test_admin_routes_are_never_allowed(shared: Server) -> None:
    answer = preflight(shared, "/v1/admin/load", PAGE)
    assert answer.status_code == 401 and allowed(answer) is None
    posted = shared.post("/v1/admin/load", {"model": "sie/mini-en"}, headers={"origin": PAGE})
    assert posted.status_code == 401 and allowed(posted) is None


def test_without_the_option_no_page_is_allowed(server: Server) -> None:
    assert allowed(preflight(server, "/v1/score/toy/bert", PAGE)) is None
    answer = server.post("/v1/score/toy/bert", BODY, headers={"origin": PAGE})
    assert answer.status_code == 200 and allowed(answer) is None


def test_an_invalid_origin_stops_the_start(tmp_path: Path) -> None:
    ended = processes.command_line(
        tmp_path, "serve", "--port", "0", "--cors-origins", "https://*.example.com"
    )
    assert ended.returncode != 0 and "is not an origin" in ended.stderr and "Traceback" not in ended.stderr
