"""The application for Ray Serve: the ingress and one deployment of model replicas per pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from sie_server.cluster.ingress.ingress import NAME, Ingress
from sie_server.cluster.replica.replica import ModelReplica
from sie_server.cluster.scaling import QueuePolicy
from sie_server.config import ConfigError, PoolConfig, ServerConfig, load_config, pool_problem
from sie_server.keys import read_keys

ALL_AT_ONCE = 100_000  # requests; a replica bounds its own queue in tokens
QUIET = {"enable_access_log": False}  # the log of the ingress has each request once
LOOK_BACK_S = 15  # of the figures that the number of replicas follows; each replica sends them every 10 s
RETRIES = 3  # starts of a replica before its deployment has failed


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the application for `serve run sie_server.cluster.app:build` and a RayService.

    `args` may have `config_file`, a configuration file that exists on the machine that builds the application, and
    `config`, a table with the same keys. The environment is read as by `sie-server serve`.

    Raises:
        ConfigError
    """
    import os

    unknown = set(args) - {"config", "config_file"}
    if unknown:
        raise ConfigError(f"unknown argument {min(unknown)!r}; the arguments are config and config_file")
    return application(load_config(args.get("config") or {}, os.environ, args.get("config_file")))


def application(config: ServerConfig) -> serve.Application:
    """Return the application of a configuration.

    Raises:
        ConfigError: the configuration does not fit a cluster.
    """
    config = with_pools(config)
    check(config)
    pools = {
        name: _of_pool(name, pool, config).bind(_of_replica(config, pool))
        for name, pool in config.cluster.pools.items()
    }
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name=NAME,
        num_replicas=config.cluster.ingress_replicas,
        max_ongoing_requests=config.max_connections,
        ray_actor_options={"num_cpus": config.cluster.ingress_cpus},
        graceful_shutdown_timeout_s=config.drain_s,
        max_surge_percent=100,  # 0 stops old replicas first
        max_constructor_retry_count=RETRIES,
        logging_config=QUIET,
    )
    return ingress.bind(config, pools)


def check(config: ServerConfig) -> None:
    """Check what a cluster needs in addition to one server.

    Raises:
        ConfigError
    """
    if problem := pool_problem(config.cluster):
        raise ConfigError(problem)
    for name, pool in config.cluster.pools.items():
        if problem := _thread_problem(config.device_threads, pool):
            raise ConfigError(f"device_threads is {config.device_threads}, and the pool {name} has {problem}")
    if config.replay_buffer:
        raise ConfigError(
            f"replay_buffer is {config.replay_buffer}, and a cluster (--ray) replays no requests; omit it"
        )
    if not any(key.may("admin") for key in read_keys(config)):
        # a proxy of the cluster sends every request, so all callers would look local
        raise ConfigError(
            "--ray needs an API key with the scope admin: set SIE_API_KEYS=ops:admin:KEY, or api_keys_file "
            "(docs/security.md)"
        )


def _thread_problem(device_threads: int | str, pool: PoolConfig) -> str | None:
    """Return why the replicas of a pool cannot have that number of device threads."""
    if not isinstance(device_threads, int) or device_threads == 1:
        return None
    if pool.gpus:
        return "a GPU, whose replicas have one; omit it"
    if pool.cpus is not None and device_threads > max(1, int(pool.cpus)):
        return f"cpus = {pool.cpus:g}, less than one for each; lower it, or omit it"
    return None


def with_pools(config: ServerConfig) -> ServerConfig:
    """Return the configuration with its pools. Without any it gets one: a replica per GPU, or one for all cores."""
    if config.cluster.pools:
        return config
    gpus = (
        0
        if config.device == "cpu" or not ray.is_initialized()
        else int(ray.cluster_resources().get("GPU", 0))
    )
    pool = PoolConfig(min_replicas=gpus, max_replicas=gpus, gpus=1) if gpus else PoolConfig()
    cluster = msgspec.structs.replace(config.cluster, pools={"default": pool})
    return msgspec.structs.replace(config, cluster=cluster)


def needs(pool: PoolConfig) -> dict[str, float]:
    """Return the resources of Ray that a replica of a pool takes."""
    cpus = pool.cpus if pool.cpus is not None else 1.0
    return {"CPU": cpus, "GPU": pool.gpus} if pool.gpus else {"CPU": cpus}


def _of_replica(config: ServerConfig, pool: PoolConfig) -> ServerConfig:
    """Return the configuration of one replica: a share of a machine has a share of its threads."""
    if config.threads or pool.cpus is None or pool.gpus:
        return config
    return msgspec.structs.replace(config, threads=max(1, int(pool.cpus)))


def _of_pool(name: str, pool: PoolConfig, config: ServerConfig) -> serve.Deployment:
    cluster, need = config.cluster, needs(pool)
    resources: dict[str, Any] = {"num_cpus": need["CPU"]}
    if pool.gpus:
        resources["num_gpus"] = pool.gpus
    if pool.accelerator:
        resources["accelerator_type"] = pool.accelerator
    router = RequestRouterConfig(
        request_router_class="sie_server.cluster.routing.router:ModelRouter",
        request_router_kwargs={"pool": name, "spread_s": cluster.spread_s},
        request_routing_stats_period_s=1,
        request_routing_stats_timeout_s=10,
    )
    fixed = pool.most == pool.min_replicas
    return serve.deployment(ModelReplica).options(
        name=name,
        ray_actor_options=resources,
        request_router_config=router,
        max_ongoing_requests=ALL_AT_ONCE,
        max_constructor_retry_count=RETRIES,
        logging_config=QUIET,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=100,
        **({"num_replicas": pool.most} if fixed else {"autoscaling_config": _scaling(pool, config)}),
    )


def _scaling(pool: PoolConfig, config: ServerConfig) -> AutoscalingConfig:
    cluster = config.cluster
    policy = AutoscalingPolicy(
        policy_function=QueuePolicy, policy_kwargs={"target_s": cluster.queue_target_s}
    )
    return AutoscalingConfig(
        min_replicas=pool.min_replicas,
        max_replicas=pool.most,
        upscale_delay_s=cluster.upscale_delay_s,
        downscale_delay_s=cluster.downscale_delay_s,
        look_back_period_s=LOOK_BACK_S,
        policy=policy,
    )
