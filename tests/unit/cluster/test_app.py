"""The pools of a cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from sie_server.cluster.app import _of_replica, needs, with_pools
from sie_server.config import PoolConfig, ServerConfig

pytestmark = pytest.mark.unit


def test_without_pools_a_machine_without_gpu_has_one_replica_for_all_cores() -> None:
    config = with_pools(ServerConfig(device="cpu"))
    assert config.cluster.pools == {"default": PoolConfig()}
    assert needs(config.cluster.pools["default"]) == {"CPU": 1.0}
    assert with_pools(config) is config


def test_a_share_of_a_machine_has_a_share_of_its_threads() -> None:
    config = ServerConfig()
    assert _of_replica(config, PoolConfig()).threads == 0  # automatic: all cores
    assert _of_replica(config, PoolConfig(cpus=2.5)).threads == 2
    assert _of_replica(config, PoolConfig(cpus=0.1)).threads == 1
    assert _of_replica(ServerConfig(threads=7), PoolConfig(cpus=2)).threads == 7
    assert _of_replica(config, PoolConfig(cpus=2, gpus=1)).threads == 0
