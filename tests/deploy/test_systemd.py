"""deploy/systemd: the unit, its hardening and its environment file, against systemd and the server's options."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sie_server.config import ServerConfig, load_config

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = (FOLDER / "sie-server.service").read_text()
ENVIRONMENT = (FOLDER / "sie-server.env.example").read_text()


def settings(unit: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))


def test_the_service_may_drain_before_it_is_killed() -> None:
    assert int(settings(UNIT)["TimeoutStopSec"]) >= ServerConfig().drain_s + 10


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


def test_the_environment_file_has_options_of_the_server() -> None:
    lines = re.findall(r"^#?(SIE_\w+)=(.*)$", ENVIRONMENT, re.MULTILINE)
    assert len(lines) > 5
    config = load_config({}, dict(lines), None)
    assert config.drain_s + 10 <= int(settings(UNIT)["TimeoutStopSec"])
    assert config.host == "127.0.0.1"
