"""Variables that Kubernetes and Docker make are not settings, and a user may have no home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sie_server.api.edge.connections.listening import ServerFailed, bind
from sie_server.config import ConfigError, Secret, ServerConfig, load_config
from sie_server.config.environment import OTHER_PROGRAMS, service_links
from sie_server.files import expanded
from support.servers.inprocess import asking

BODY = {"query": {"text": "rain"}, "items": [{"text": "a"}]}


def kubernetes(
    service: str, address: str = "10.0.0.1", protocol: str = "tcp", port: int = 8080
) -> dict[str, str]:
    """Return the variables of a Service with one named port (pkg/kubelet/envvars of Kubernetes)."""
    name = service.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    url = f"{protocol}://{host}:{port}"
    link = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_METRICS": str(port),
        f"{name}_PORT": url,
        link: url,
        f"{link}_PROTO": protocol,
        f"{link}_PORT": str(port),
        f"{link}_ADDR": address,
    }


def docker(alias: str) -> dict[str, str]:
    """Return the variables of a container link (docs.docker.com, "Legacy container links")."""
    name = alias.upper().replace("-", "_")
    link = f"{name}_PORT_5432_TCP"
    return {
        f"{name}_NAME": f"/web/{alias}",
        f"{name}_PORT": "tcp://172.17.0.5:5432",
        link: "tcp://172.17.0.5:5432",
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": "5432",
        f"{link}_ADDR": "172.17.0.5",
        f"{name}_ENV_PORT": "5432",
        f"{name}_ENV_SIE_DEVICE": "cuda",
    }


@pytest.mark.parametrize(
    "variables",
    [
        *(kubernetes(name) for name in ("sie", "sie-server", "sie-cluster", "sie-device", "sie-max-body")),
        kubernetes("sie", "fd00::1"),
        kubernetes("sie-dns", protocol="udp", port=53),
        kubernetes("sie", protocol="sctp"),
        docker("sie"),
        docker("sie-models-dir"),
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_variables_of_a_service_are_ignored_and_named(variables: dict[str, str]) -> None:
    assert load_config({}, variables, None) == ServerConfig()
    assert service_links(variables | {"PATH": "/"}) == sorted(variables)
    for name, value in variables.items():  # an operator may have removed the others
        if "_ENV_" not in name:
            assert service_links({name: value}) == [name]


def test_settings_beside_them_count() -> None:
    variables = kubernetes("sie-server") | {"SIE_PORT": "9000", "SIE_DEVICE": "cpu"}
    config = load_config({}, variables, None)
    assert (config.port, config.device) == (9000, "cpu")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SIE_HOME", "/opt/sie", "unknown option SIE_HOME"),
        ("SIE_PROT", "1", "unknown option SIE_PROT; did you mean 'port'"),
        ("SIE_PORT", "http://10.0.0.1:80", "SIE_PORT"),
        ("SIE_SERVER_PORT", "8080", "unknown option SIE_SERVER_PORT"),
        ("SIE_NAME", "prod", "unknown option SIE_NAME"),
        ("SIE_ENV_MODE", "prod", "unknown option SIE_ENV_MODE"),  # no link has the alias
        ("SIE_PORT_8080", "1", "unknown option SIE_PORT_8080"),
        ("SIE_SERVICE_HOSTS", "a", "unknown option SIE_SERVICE_HOSTS"),
    ],
)
def test_any_other_variable_is_an_error(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({}, kubernetes("sie-cluster") | {name: value}, None)


def test_variables_of_other_programs_of_the_project_are_ignored() -> None:
    assert load_config({}, dict.fromkeys(OTHER_PROGRAMS, "1"), None) == ServerConfig()


@pytest.mark.parametrize("path", ["~", "~/models", "~nobody-has-this-name/models"])
def test_a_user_without_a_home_keeps_paths_as_they_are(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A container may run as a user id that the system does not know; `Path.home` raises there."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(RuntimeError):
        Path(path).expanduser()
    assert str(expanded(path)) == path


def test_callers_without_rights_see_the_models_of_such_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with asking({}, api_keys=Secret("web:infer:infer-3f9a27c1d05b")) as client:
        client.headers["authorization"] = "Bearer infer-3f9a27c1d05b"
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/score/BAAI/bge-reranker-base", json=BODY).status_code == 502


@pytest.mark.parametrize("host", ["256.1.1.1", "::zz", "192.0.2.1"])  # no machine has the last one (RFC 5737)
def test_an_address_that_cannot_be_bound_is_not_a_matter_of_the_port(host: str) -> None:
    with pytest.raises(ServerFailed, match="choose another address with --host"):
        bind(host, 0)
    with bind("127.0.0.1", 0) as taken, pytest.raises(ServerFailed, match="choose another port with --port"):
        bind("127.0.0.1", taken.getsockname()[1])
