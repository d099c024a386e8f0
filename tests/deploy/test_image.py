"""The image: its Dockerfile, the pinned versions in it, its health check, and the compose file that runs it."""

from __future__ import annotations

import http.server
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import install_torch
from sie_server import __version__
from sie_server.config import ServerConfig, load_config

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy/docker"
PROJECT = ROOT / "packages/sie-server/pyproject.toml"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
GPU: dict[str, Any] = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")  # a repository and a version


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


requirements, healthcheck = load("requirements"), load("healthcheck")
PINS = dict(
    line.split("==")
    for line in (DOCKER / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


# ── the Dockerfile ──


def final(instruction: str) -> list[str]:
    """Return the arguments of an instruction in the last stage."""
    stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    return [line.split(None, 1)[1] for line in stage.splitlines() if line.startswith(f"{instruction} ")]


def variables() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(final("ENV"))))


@pytest.mark.skipif(
    not (found := shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")),
    reason="hadolint is not installed",
)
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(found), DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_has_a_version() -> None:
    [base] = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert IMAGE.fullmatch(base)
    assert all(image in ("base", "tools", "dependencies") or "$" in image for image in stages())
    assert "latest" not in DOCKERFILE


def stages() -> list[str]:
    return re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)


def test_the_last_stage_is_hardened() -> None:
    assert final("USER") == ["10001:10001"]
    assert final("STOPSIGNAL") == ["SIGTERM"]
    assert final("ENTRYPOINT") == ['["/opt/sie/bin/sie-server"]'], "a shell would not pass SIGTERM on"
    [check] = final("HEALTHCHECK")
    assert "curl" not in check and "/opt/sie/healthcheck.py" in check
    assert int(re.findall(r"--timeout=(\d+)s", check)[0]) > healthcheck.TIMEOUT_S


def test_its_variables_are_settings_of_the_server() -> None:
    assert load_config({}, variables(), None).host == "0.0.0.0"


def test_the_label_is_the_version() -> None:
    assert re.findall(r"^ARG VERSION=(\S+)$", DOCKERFILE, re.MULTILINE) == [__version__]


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()]


def test_every_copied_file_is_sent_to_the_builder() -> None:
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert patterns[0] == "*", "everything is left out, except"
    sent = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for name in [*copied(), *sent]:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(kept, f"{name}*") or name == kept for kept in sent), (
            f"{name} is not in .dockerignore"
        )
    for secret in ("deploy/docker/secrets/api_keys.toml", ".git/config", ".venv/bin/python"):
        assert not any(secret.startswith(kept) for kept in sent)


# ── versions ──


def declared() -> list[Requirement]:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    return [Requirement(line) for line in requirements.requirements(PROJECT, [*extras])]


@pytest.mark.parametrize("needed", declared(), ids=lambda needed: needed.name)
def test_every_requirement_is_pinned_within_its_range(needed: Requirement) -> None:
    name = canonicalize_name(needed.name)
    assert name in PINS, "run deploy/docker/requirements.py --pin"
    assert needed.specifier.contains(PINS[name])


def test_torch_is_the_version_that_the_installer_looks_for() -> None:
    assert f"torch=={PINS['torch']}" == install_torch.CPU_BUILD
    assert Requirement(install_torch.ACCEPTED).specifier.contains(PINS["torch"])


def test_pins_are_those_of_everything_that_is_needed_in_turn() -> None:
    found = requirements.pins(["uvicorn[standard]", "starlette"])
    assert {"uvicorn", "starlette", "anyio", "idna", "h11", "uvloop", "httptools", "websockets"} <= {*found}
    assert "uvloop" not in requirements.pins(["uvicorn"]), "that is a requirement of the extra"
    assert {*found} <= {*PINS}


def test_an_unknown_extra_stops_the_build() -> None:
    asked = [sys.executable, DOCKER / "requirements.py", PROJECT]
    done = subprocess.run([*asked, "compat,gpu"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"EXTRAS: unknown extra 'gpu'; sie-server has .*compat.*\n", done.stderr)
    lines = [
        subprocess.run([*asked, extras], capture_output=True, text=True).stdout for extras in ("", " compat ")
    ]
    assert "torch" in lines[0] and "transformers" not in lines[0]
    assert lines[1].startswith(lines[0].rstrip("\n")) and "transformers" in lines[1]


# ── the health check ──


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"not ready")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "words"), [(200, None), (503, "503 not ready"), (404, "404"), (301, "301")]
)
def test_only_a_ready_server_is_healthy(status: int, words: str | None) -> None:
    with answering(status) as port:
        problem = healthcheck.problem(port)
    assert (problem is None) if words is None else (words in problem)


def test_a_server_that_does_not_listen_or_answer_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert "refused" in healthcheck.problem(port).lower()
        silent.listen()
        assert "timed out" in healthcheck.problem(port)


def test_a_proxy_of_the_environment_is_not_asked() -> None:
    with answering(200) as port:
        environment = {"SIE_PORT": str(port), "http_proxy": "http://127.0.0.1:9", "PATH": os.defpath}
        done = subprocess.run([sys.executable, "-I", DOCKER / "healthcheck.py"], env=environment)
    assert done.returncode == 0


# ── the compose file ──


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_hardened(name: str) -> None:
    service = SERVICES[name]
    assert IMAGE.fullmatch(service["image"])
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0:", "root"))
    assert "mem_limit" in service and "pids_limit" in service
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert "healthcheck" in service or final("HEALTHCHECK")
    assert not service.get("privileged") and "network_mode" not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "published on this machine only"


@pytest.mark.parametrize("name", SERVICES)
def test_everything_that_a_service_names_exists(name: str) -> None:
    service = SERVICES[name]
    for mount in service["volumes"]:
        source = mount.split(":")[0]
        exists = (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert exists, mount
    assert {*service.get("secrets", [])} <= {*COMPOSE["secrets"]}
    assert {*service["networks"]} <= {*COMPOSE["networks"]}
    for value in service.get("environment", {}).values():
        if value.startswith("/run/secrets/"):
            assert Path(value).name in service["secrets"]
    if "build" in service:
        context = DOCKER / service["build"]["context"]
        assert context.resolve() == ROOT and (context / service["build"]["dockerfile"]).exists()


def test_the_server_has_its_settings() -> None:
    service = SERVICES["sie"]
    environment = {
        name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in service["environment"].items()
    }
    config = load_config({}, {**variables(), **environment}, None)
    assert (config.host, config.port) == ("0.0.0.0", 8080)
    assert service["ports"][0].endswith(f":{config.port}") and service["init"] is True
    assert any(mount.endswith(f":{variables()['HF_HOME']}") for mount in service["volumes"])
    assert service["user"] == final("USER")[0]
    assert int(service["stop_grace_period"].rstrip("s")) >= ServerConfig().drain_s + 10


def test_prometheus_reaches_the_server_and_nothing_else() -> None:
    assert (
        SERVICES["prometheus"]["networks"] == ["monitoring"] and COMPOSE["networks"]["monitoring"]["internal"]
    )
    assert "monitoring" in SERVICES["sie"]["networks"]
    scraped = yaml.safe_load((ROOT / "deploy/observability/prometheus.yaml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["sie:8080"]


def mounts(name: str) -> dict[str, Path]:
    """Return the files of the repository that a service mounts: path in the container → file."""
    parts = [mount.split(":") for mount in SERVICES[name]["volumes"]]
    return {target: DOCKER / source for source, target, *_ in parts if source.startswith(".")}


def test_prometheus_and_grafana_find_the_files_that_their_settings_name() -> None:
    prometheus, grafana = mounts("prometheus"), mounts("grafana")
    for rules in yaml.safe_load(prometheus["/etc/prometheus/prometheus.yaml"].read_text())["rule_files"]:
        assert f"/etc/prometheus/{rules}" in prometheus
    [provider] = yaml.safe_load(grafana["/etc/grafana/provisioning/dashboards/sie.yaml"].read_text())[
        "providers"
    ]
    shown = [path for path in grafana if Path(path).parent == Path(provider["options"]["path"])]
    assert [grafana[path].name for path in shown] == ["dashboard.json"]
    [source] = yaml.safe_load(grafana["/etc/grafana/provisioning/datasources/sie.yaml"].read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090" and "monitoring" in SERVICES["grafana"]["networks"]


def test_the_file_for_gpus_changes_the_server_only() -> None:
    assert {*GPU} == {"services"} and {*GPU["services"]} == {"sie"}
    changed = GPU["services"]["sie"]
    assert IMAGE.fullmatch(changed["image"]) and changed["image"] != SERVICES["sie"]["image"]
    assert changed["build"]["args"] == {"VARIANT": "cuda"}


def test_secrets_are_ignored_by_git() -> None:
    paths = [
        secret["file"].replace("${SECRETS:-./secrets}", "secrets") for secret in COMPOSE["secrets"].values()
    ]
    asked = ["git", "check-ignore", *(f"deploy/docker/{path}" for path in paths)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == len(paths)


# ── the script that builds and runs the image ──


def test_a_machine_without_the_tools_is_told_what_is_missing(tmp_path: Path) -> None:
    for tool in ("dirname", "id", "bash"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        [tmp_path / "bash", DOCKER / "try_image"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 77
    assert re.fullmatch(r"skipped: needs mmdebstrap buildah podman .*apt-get install .*\n", done.stderr)
