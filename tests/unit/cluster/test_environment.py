"""The variables that Ray Serve reads."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("ray")

from sie_server.cluster import environment
from sie_server.cluster.environment import INGRESS_PORTS, PORTS_OF_A_CLUSTER, separate_ingress
from sie_server.config import ConfigError

pytestmark = pytest.mark.unit


def ports(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return the first and the last port of a new cluster."""
    found: dict[str, str] = {}
    monkeypatch.setattr(environment.os, "environ", found)
    separate_ingress()
    first, last = (int(found[name]) for name in INGRESS_PORTS)
    return first, last


def test_a_cluster_gets_ports_that_nothing_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = ports(monkeypatch)
    assert last - first == PORTS_OF_A_CLUSTER - 1
    with socket.create_server(("127.0.0.1", first + 5)):
        monkeypatch.setattr(environment, "FIRST_PORT", first)
        monkeypatch.setattr(environment, "LAST_PORT", first + 1)
        with pytest.raises(ConfigError, match=INGRESS_PORTS[0]):
            ports(monkeypatch)
    assert ports(monkeypatch) == (first, last)
