"""The playground at /: in a real browser, for other clients, and its files."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.api.pages import playground
from sie_server.config import Secret, ServerConfig
from sie_server.serving.service import Service
from support.servers import processes, programs
from support.servers.processes import Server

KEY = "playground-4f1e90b7c2d8"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MOST_BYTES = 150_000  # of all files, compressed


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve with keys, below a prefix that a proxy keeps."""
    env = {"SIE_API_KEYS": f"web:infer:{KEY}", "SIE_ROOT_PATH": "/sie"}
    with processes.running(tmp_path_factory.mktemp("playground"), env=env) as server:
        yield server


def test_the_page_works_in_a_browser(guarded: Server, tmp_path: Path) -> None:
    programs.npm()
    browser = programs.found("Chromium", *programs.CHROMIUM)
    env = {"PAGE": f"{guarded.base_url}/sie", "SIE_API_KEY": KEY, "CHROMIUM": browser, "OUT": str(tmp_path)}
    printed = programs.run("npm", "run", "test:playground", env=env)
    assert re.search("^# pass 5$", printed, re.M), printed
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert scores_of_curl(tmp_path / "request.curl") == shown
    assert scores_of_python(tmp_path / "request.Python", guarded) == shown
    code = (tmp_path / "request.TypeScript").read_text(encoding="utf-8")  # without types, so Node runs it
    printed = programs.run("node", "--input-type=module", "-e", code, env={"SIE_API_KEY": KEY})
    assert scores_of_lines(printed) == shown
    assert KEY not in "".join(path.read_text() for path in tmp_path.glob("request.*"))


def scores_of_curl(path: Path) -> list[str]:
    """Run the shown command, and return its scores as the page writes them."""
    programs.found("curl", "curl")
    command = ["bash", "-c", path.read_text(encoding="utf-8")]
    env = {"SIE_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    return [f"{entry['score']:.3f}" for entry in json.loads(done.stdout)["scores"]]


def scores_of_python(path: Path, server: Server) -> list[str]:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setenv("SIE_API_KEY", KEY)
        exec(compile(path.read_text(encoding="utf-8"), "the page", "exec"), {})  # noqa: S102 - our own page
    return scores_of_lines(printed.getvalue())


def scores_of_lines(printed: str) -> list[str]:
    return [f"{float(line.split()[-1]):.3f}" for line in printed.splitlines()]


def test_addresses_are_relative(guarded: Server) -> None:
    """So the page works below any prefix, of a proxy that removes it and of one that keeps it."""
    for path, root in (("/", "./"), ("//", "../"), ("/sie", "sie/"), ("/sie/", "./"), ("/sie//", "../")):
        page = httpx.get(guarded.base_url + path, headers=BROWSER)
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        addresses = re.findall(r'(?:href|src|data-root)="([^"#]+)"', page.text)
        assert len(addresses) > 5 and all(address.startswith(root) for address in addresses), addresses
        for address in {a for a in addresses if "playground" in a}:
            assert httpx.get(urljoin(guarded.base_url + path, address)).status_code == 200, (path, address)


@pytest.fixture(scope="module", params=[True, False], ids=["playground", "no-playground"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    config = ServerConfig(
        device="cpu", model=(), offline=True, api_keys=Secret(KEY), playground=request.param
    )
    with TestClient(create_app(config, Service)) as client:
        client.headers.pop("accept")
        client.app_state = {"on": request.param}
        yield client


def test_only_browsers_get_the_page(client: TestClient) -> None:
    """The path is also that of other vendors' clients, which see no difference."""
    on = client.app_state["on"]
    assert client.get("/", headers=BROWSER).status_code == (200 if on else 401)
    assert client.head("/", headers=BROWSER).status_code == (200 if on else 401)
    for accept in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        for method in ("GET", "HEAD"):
            assert client.request(method, "/", headers=accept).status_code == 401
            known = {**accept, "authorization": f"Bearer {KEY}"}
            assert client.request(method, "/", headers=known).status_code == 405
    assert client.post("/", headers=BROWSER, json={"inputs": "a"}).status_code == 401
    assert 'route="/",status="200"' not in client.get("/metrics").text  # a page is no inference
    tei = client.post("/", headers={**BROWSER, "authorization": f"Bearer {KEY}"}, json={"inputs": "a"})
    assert tei.json().keys() >= {"error", "error_type"}  # the dialect's own error: no model is served


def test_the_page_and_its_files_need_no_key_and_all_else_does(client: TestClient) -> None:
    on = client.app_state["on"]
    found = client.get("/playground/js/app.js")
    assert found.status_code == (200 if on else 404)
    for path in (
        "/playground/js/none.js",
        "/playground/index.html",
        "/playground/js/../../page.py",
        "/playground/",
    ):
        assert client.get(path).status_code in (401, 404)
    for path in ("/v1/models", "/v1/models/sie/mini-en"):
        assert client.get(path, headers=BROWSER).status_code == 401


def test_the_policy_allows_only_files_of_the_server(client: TestClient) -> None:
    if not client.app_state["on"]:
        return
    for path in ("/", "/playground/js/app.js"):
        policy = client.get(path, headers=BROWSER).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", playground.html("./"))


def test_files_are_small_and_complete() -> None:
    files = dict(playground.files())
    served = b"".join([*files.values(), playground.html("./").encode()])
    assert (
        sum(len(gzip.compress(each)) for each in [*files.values(), playground.html("./").encode()])
        < MOST_BYTES
    )
    assert not re.search(rb"https?://(?!www\.w3\.org/)(?!localhost)[\w.-]+\.\w+/\S+\.(js|css|woff2?)", served)
    page, used = playground.html("./"), {"js/app.js"}
    for name, content in files.items():
        text = content.decode()
        imports = re.findall(r'^import .*from "\./([\w.]+)"', text, re.M)
        assert all(f"js/{each}" in files for each in imports), (name, imports)
        used |= {f"js/{each}" for each in imports}
        for wanted in re.findall(r'byId\("([\w-]+)"', text):
            assert f'id="{wanted}"' in page, f"{name} needs #{wanted}"
    used |= set(re.findall(r'\./playground/([\w./]+)"', page))
    assert used == set(files)
