"""deploy/systemd: the unit, its hardening and its environment file, against systemd and the server's options."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sie_server.cluster.environment import SETTINGS
from sie_server.config import ServerConfig, load_config
from support.deploy.references import server

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = (FOLDER / "sie-server.service").read_text()
RAY = (FOLDER / "ray.conf").read_text()
HARD_STOP_S = int(SETTINGS["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
ENVIRONMENT = (FOLDER / "sie-server.env.example").read_text()


def settings(unit: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))


def test_the_service_may_drain_before_it_is_killed() -> None:
    assert int(settings(UNIT)["TimeoutStopSec"]) >= ServerConfig().drain_s + 10
    assert int(settings(RAY)["TimeoutStopSec"]) >= ServerConfig().drain_s + HARD_STOP_S


def test_only_the_server_itself_gets_sigterm() -> None:
    assert settings(UNIT)["KillMode"] == "mixed", "Ray's processes would end before the replicas have drained"
    assert "KillMode" not in settings(RAY)


def test_systemd_accepts_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "sie-server.service"
    unit.write_text(UNIT.replace("/opt/sie/bin/sie-server", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    exposed = ["systemd-analyze", "security", "--offline=yes", "--threshold=20"]
    assert subprocess.run([*exposed, unit], capture_output=True).returncode == 0
    unit.write_text(unit.read_text().replace("ProtectSystem=strict\n", "").replace("DynamicUser=yes\n", ""))
    assert subprocess.run([*exposed, unit], capture_output=True).returncode == 1


def test_systemd_accepts_the_unit_with_ray(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit, more = tmp_path / "sie-server.service", tmp_path / "sie-server.service.d" / "ray.conf"
    more.parent.mkdir()
    unit.write_text(UNIT.replace("/opt/sie/bin/sie-server", "/bin/true"))

    def problems(text: str) -> str:
        more.write_text(text.replace("/opt/sie/bin/sie-server", "/bin/true"))
        return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr

    assert problems(RAY) == ""
    assert "TimeoutStop" in problems(RAY.replace("TimeoutStopSec", "TimeoutStop")), "it read the file"
    assert "more than one ExecStart=" in problems(RAY.replace("ExecStart=\n", "", 1))


def test_the_server_has_the_options_of_the_units() -> None:
    commands = [line.split(None, 1)[1] for line in re.findall(r"^ExecStart=(.+)$", UNIT + RAY, re.MULTILINE)]
    assert [list(server(command.split())) for command in commands] == [[], []]
    directories = settings(RAY)["StateDirectory"].split()
    assert settings(RAY)["Environment"] == f"SIE_MODELS_DIR=%S/{directories[-1]}"


def test_the_environment_file_has_options_of_the_server() -> None:
    lines = re.findall(r"^#?(SIE_\w+)=(.*)$", ENVIRONMENT, re.MULTILINE)
    assert len(lines) > 5
    config = load_config({}, dict(lines), None)
    assert config.drain_s + 10 <= int(settings(UNIT)["TimeoutStopSec"])
    assert config.host == "127.0.0.1"
