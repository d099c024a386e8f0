"""The table `[cluster]` of the configuration file: how `serve --ray` spreads models over replicas and machines."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
Count = Annotated[int, Meta(ge=0, le=10_000)]
Resource = Annotated[float, Meta(ge=0, le=10_000)]


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A `[cluster.pools.NAME]` table: model replicas of one kind."""

    min_replicas: Count = 1  # 0: the pool starts with its first request
    max_replicas: Count | None = None  # None: as many as min_replicas, at least one
    cpus: Resource | None = None  # of each replica; also its CPU threads, unless `threads` is set
    gpus: Resource = 0
    accelerator: str | None = None  # Ray's accelerator type, which X-SIE-MACHINE-PROFILE names
    models: tuple[str, ...] = ()  # ids that the pool serves; empty: all others

    @property
    def most(self) -> int:
        """The largest number of replicas."""
        return max(1, self.min_replicas) if self.max_replicas is None else self.max_replicas


class ClusterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[cluster]`."""

    pools: dict[str, PoolConfig] = {}  # empty: one replica per GPU, or one for the CPU
    ingress_replicas: Annotated[int, Meta(ge=1, le=1000)] = 2
    ingress_cpus: Resource = 0.25  # that Ray sets aside for each
    split_documents: Annotated[int, Meta(ge=0)] = 0  # documents per part of a large request; 0: never split
    queue_target_s: Annotated[float, Meta(gt=0, le=3600)] = 2.0  # seconds of queued work per replica
    spread_s: Annotated[float, Meta(gt=0, le=3600)] = 0.5  # queue at which a model spreads to another replica
    upscale_delay_s: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    downscale_delay_s: Annotated[float, Meta(ge=0, le=86400)] = 300.0
    start_s: Annotated[float, Meta(gt=0, le=86400)] = 10.0  # of a replica, until one has been measured


def pool_problem(cluster: ClusterConfig) -> str | None:
    """Return what is wrong with the pools; None: nothing."""
    for name, pool in cluster.pools.items():
        where = f"cluster.pools.{name}"
        if not POOL.fullmatch(name):
            return f"{where}: a name may contain letters, digits, - and _, at most 63"
        if pool.most < max(1, pool.min_replicas):
            return f"{where}.max_replicas: {pool.most} is less than {max(1, pool.min_replicas)}"
        if pool.cpus == 0 and not pool.gpus:
            return f"{where}: a replica needs cpus or gpus above 0"
        if pool.gpus > 1 and pool.gpus != int(pool.gpus):
            return f"{where}.gpus: {pool.gpus:g} is not a whole number"
    return None
