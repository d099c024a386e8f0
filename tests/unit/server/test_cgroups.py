"""Limits of containers and services, read from files as Linux shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sie_server.engine.machine.cgroups import cpu_quota, memory_limits

Write = Callable[[str, dict[str, str]], tuple[Path, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the groups of the process and the files of a hierarchy; return their paths as arguments."""

    def _write(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        (tmp_path / "own").write_text(own)
        for name, value in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return tmp_path / "cgroup", tmp_path / "own"

    return _write


def test_memory_limits_of_this_group_and_of_those_above(write: Write) -> None:
    files = {
        "memory.max": "max",
        "system/memory.max": "3000",
        "system/server/memory.max": "5000",
        "memory/pod/memory.limit_in_bytes": "6000",
        "memory/pod/old/memory.limit_in_bytes": "4000",
        "memory/other/memory.limit_in_bytes": "1000",
    }
    where = write("0::/system/server\n4:cpu,memory:/pod/old\n", files)
    assert sorted(memory_limits(*where)) == [3000, 4000, 5000, 6000]


def test_a_cpu_limit_in_a_container_of_docker_or_kubernetes(write: Write) -> None:
    assert cpu_quota(*write("0::/\n", {"cpu.max": "200000 100000"})) == 2
    assert cpu_quota(*write("0::/\n", {"cpu.max": "max 100000"})) is None


def test_the_lowest_cpu_limit_of_the_groups_above_counts(write: Write) -> None:
    files = {
        "pod/cpu.max": "150000 100000",
        "pod/server/cpu.max": "30000 10000",
        "other/cpu.max": "1000 100000",
    }
    assert cpu_quota(*write("0::/pod/server\n", files)) == 1.5


@pytest.mark.parametrize(("quota", "period", "cores"), [("50000", "20000", 2.5), ("-1", "100000", None)])
def test_a_cpu_limit_of_cgroup_v1(write: Write, quota: str, period: str, cores: float | None) -> None:
    files = {"cpu/docker/a1/cpu.cfs_quota_us": quota, "cpu/docker/a1/cpu.cfs_period_us": period}
    own = "5:cpu,cpuacct:/docker/a1\n4:cpuset:/docker\n"
    assert cpu_quota(*write(own, files)) == cores


def test_a_container_of_cgroup_v1_has_its_own_group_at_the_root(write: Write) -> None:
    files = {"cpu/cpu.cfs_quota_us": "300000", "memory/memory.limit_in_bytes": "7000"}
    where = write("5:cpu,cpuacct:/docker/a1\n4:memory:/docker/a1\n", files)
    assert cpu_quota(*where) == 3
    assert set(memory_limits(*where)) == {7000}


def test_groups_that_cannot_be_read_limit_nothing(write: Write, tmp_path: Path) -> None:
    where = write("0::/../x\n1:name=systemd:/\n", {"cpu.max": "many", "memory.max": ""})
    assert cpu_quota(*where) is None
    assert memory_limits(*where) == []
    nowhere = tmp_path / "nowhere", tmp_path / "none"
    assert cpu_quota(*nowhere) is None
    assert memory_limits(*nowhere) == []
