"""`sie-server bench`: its options, and the form of its result."""

from sie_server.cli.bench.command import bench

__all__ = ["bench"]
