"""What containers and services allow this process: memory and CPU time, as cgroups of Linux (v1 and v2) limit them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # the groups of this process
PERIOD_US = 100_000  # of a CPU quota, the kernel's default


def memory_limits(root: Path = ROOT, own: Path = OWN) -> list[int]:
    """Return all limits of memory that apply to this process, in bytes."""
    files = {1: "memory.limit_in_bytes", 2: "memory.max"}
    texts = (_read(folder / files[version]) for version, folder in _folders("memory", root, own))
    return [limit for text in texts if (limit := _whole(text)) is not None]


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Return the CPU time that this process may use, in seconds per second, or None without a limit.

    A quota is no affinity: the process sees all cores of the machine. If it uses more CPU time than the quota allows,
    the kernel stops all its threads until the next period.
    """
    quotas = [_quota(version, folder) for version, folder in _folders("cpu", root, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _folders(controller: str, root: Path, own: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each group that limits this process: its own and all groups above.

    In a container the path of the own group may be the one on the host, of which the container sees only the last
    part, as the root of the hierarchy. So the root always counts.
    """
    yield 1, root / controller
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        if not controllers:
            yield from ((2, root / part) for part in (group, *group.parents))
        elif controller in controllers.split(","):
            yield from ((1, root / controller / part) for part in (group, *group.parents))


def _quota(version: int, folder: Path) -> float | None:
    if version == 2:  # "200000 100000" or "max 100000"
        quota, _, period = _read(folder / "cpu.max").partition(" ")
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    allowed = _whole(quota)  # v1 has -1 for no limit
    return allowed / (_whole(period) or PERIOD_US) if allowed and allowed > 0 else None


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "max", or no such file
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:  # no such group in this namespace, or another operating system
        return ""
