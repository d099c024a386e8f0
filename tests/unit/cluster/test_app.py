"""The pools of a cluster."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from sie_server.cluster.app import _of_replica, check, needs, with_pools
from sie_server.config import ClusterConfig, ConfigError, PoolConfig, Secret, ServerConfig

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


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"gpus": 1}, "the pool wide has a GPU, whose replicas have one"),
        ({"cpus": 2}, "has cpus = 2, less than one"),
    ],
)
def test_device_threads_that_a_replica_cannot_have_are_refused(pool: dict[str, int], message: str) -> None:
    keys = Secret("ops:admin:0123456789abcdef")
    for count in (3, 1, "auto"):
        config = ServerConfig(
            device_threads=count, api_keys=keys, cluster=ClusterConfig(pools={"wide": PoolConfig(**pool)})
        )
        if count == 3:
            with pytest.raises(ConfigError, match=message):
                check(config)
        else:
            check(config)
