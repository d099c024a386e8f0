"""The server below a path of a real nginx, which removes the prefix or keeps it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from sie_sdk import SIEClient
from sie_server.api.app import create_app
from sie_server.config import ConfigError, ServerConfig
from sie_server.serving.service import Service
from support.servers import processes, programs
from support.servers.processes import PLAIN, Server
from support.waiting import eventually

KEY, ADMIN = "infer-6c2e81d4b7a0", "admin-0f3d92c6e1b5"
BODY = {"query": "rain", "documents": ["stars", "rain falls"]}
BEARER = {"authorization": f"Bearer {KEY}"}
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        proxy_set_header X-Forwarded-Prefix $request_uri;
        location /removed/ {{ proxy_pass http://127.0.0.1:{server}/; }}
        location /kept/ {{ proxy_pass http://127.0.0.1:{server}; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"SIE_API_KEYS": f"web:infer:{KEY},ops:admin:{ADMIN}", "SIE_ROOT_PATH": "/kept"}
    with processes.running(tmp_path_factory.mktemp("behind"), env=env) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(behind: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    nginx = programs.found("nginx", "nginx", "/usr/sbin/nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), processes.free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, port=port, server=behind.port), encoding="utf-8"
    )
    process = subprocess.Popen(
        [nginx, "-c", str(configuration), "-e", str(folder / "error.log"), "-p", str(folder)]
    )
    try:
        assert eventually(lambda: _listens(f"http://127.0.0.1:{port}/"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _listens(url: str) -> bool:
    try:
        return httpx.get(url, verify=PLAIN).status_code > 0
    except httpx.TransportError:
        return False


@pytest.fixture(params=["removed", "kept"])
def base(request: pytest.FixtureRequest, proxy: str) -> str:
    return f"{proxy}/{request.param}"


def get(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(url, headers=headers, verify=PLAIN, timeout=60)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/livez", "/metrics", "/openapi.json", "/docs", "/docs/"]
)
def test_open_routes(base: str, path: str) -> None:
    assert get(base + path).status_code == 200


@pytest.mark.parametrize("page", ["/docs", "/docs/", "//docs"])
def test_every_address_of_the_page_leads_below_the_prefix(base: str, page: str) -> None:
    url, root = httpx.URL(base + page), "../" if page.endswith("/") else ""
    for address in ("docs/static/swagger-ui.css", "openapi.json"):
        assert f'="{root}{address}"' in get(base + page).text
        assert get(str(url.join(root + address))).status_code == 200
    document = url.join(f"{root}openapi.json")
    here = document.join(get(str(document)).json()["servers"][0]["url"])
    assert str(here.join("healthz")) in (f"{base}/healthz", f"{base}//healthz")


def test_clients_take_the_prefix_in_their_address(base: str) -> None:
    for url in (base, f"{base}/"):
        with SIEClient(url, api_key=KEY) as client:
            answer = client.score(
                "sie/mini-en", {"text": "rain"}, [{"text": "stars"}, {"text": "rain falls"}]
            )
            assert answer["scores"][0]["item_id"] == "item-1"
        openai = OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=KEY, max_retries=0)
        assert len(openai.embeddings.create(model="sie/mini-en", input="rain").data) == 1


@pytest.mark.parametrize("path", ["/v1/rerank", "//v1/rerank", "/v1//rerank/", "/v1%2Frerank"])
def test_keys_are_checked_below_the_prefix(base: str, path: str) -> None:
    url = base + path
    assert httpx.post(url, json=BODY, verify=PLAIN, timeout=60).status_code == 401
    assert httpx.post(url, json=BODY, headers=BEARER, verify=PLAIN, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/kept/v1/admin/load", "//kept//v1/admin/load", "/kept%2Fv1%2Fadmin/load", "/%6Bept/v1/admin/load/",
        "/v1/admin/load", "/kept/kept/v1/admin/load",
    ],
)  # fmt: skip
def test_no_spelling_of_the_prefix_avoids_the_scope(behind: Server, path: str) -> None:
    body = {"model": "sie/mini-en"}
    assert behind.post(path, body).status_code == 401
    refused = behind.post(path, body, headers=BEARER).status_code
    assert refused == (404 if "kept/kept" in path else 403)


def test_a_path_that_only_begins_like_the_prefix_is_another(behind: Server) -> None:
    assert behind.get("/keptx/healthz", BEARER).status_code == 404
    assert behind.get("/kept", BEARER).status_code == behind.get("/", BEARER).status_code
    assert behind.get("/healthz").status_code == 200  # a health check that does not pass the proxy


@pytest.mark.parametrize(
    "prefix", ["sie", "/sie/", "/", "/a b", "/a//b", "https://host/sie", "/sie?x", "/../sie"]
)
def test_an_invalid_prefix_stops_the_start(prefix: str) -> None:
    with pytest.raises(ConfigError, match="root_path"):
        create_app(ServerConfig(root_path=prefix), Service)
