"""The configuration: its options, the variables of the environment, and how their sources are merged."""

from sie_server.config.cluster import ClusterConfig, PoolConfig, pool_problem
from sie_server.config.environment import service_links
from sie_server.config.loading import load_config, suggest
from sie_server.config.options import (
    DEFAULT_MODEL,
    NAME_LENGTH,
    Secret,
    ServerConfig,
    is_secret,
    is_table,
)
from sie_server.errors import ConfigError

__all__ = [
    "DEFAULT_MODEL",
    "NAME_LENGTH",
    "ClusterConfig",
    "ConfigError",
    "PoolConfig",
    "Secret",
    "ServerConfig",
    "is_secret",
    "is_table",
    "load_config",
    "pool_problem",
    "service_links",
    "suggest",
]
