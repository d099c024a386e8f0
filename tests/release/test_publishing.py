"""The commands of release.yml that run without GitHub, as the workflow has them. The long form of the release tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from release.conftest import LONG, ROOT

VERSION = (ROOT / "VERSION").read_text().strip().partition("+")[0]
STEPS = {
    step.get("name", step["run"]): step["run"]
    for job in yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"].values()
    for step in job["steps"]
    if "run" in step
}


def run(step: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the commands of a step in the shell of the workflow."""
    known = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    command = ["bash", "-e", "-o", "pipefail", "-c", STEPS[step]]
    return subprocess.run(command, cwd=cwd, env=known | env, capture_output=True, text=True, timeout=120)


def test_only_the_tag_of_the_version_is_released() -> None:
    step = "The tag is that of the version"
    assert run(step, ROOT, GITHUB_REF_NAME=f"v{VERSION}").returncode == 0
    wrong = run(step, ROOT, GITHUB_REF_NAME="v9.9.9")
    assert wrong.returncode == 1 and f"the tag is v9.9.9, and VERSION has {VERSION}" in wrong.stdout


def test_names_of_the_image_follow_from_its_repository(tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = {"REPOSITORY": "host.example.com/team/sie", "VARIANT": "cuda", "GITHUB_OUTPUT": str(out)}
    assert run("Name of the image", ROOT, **env).returncode == 0
    names = dict(line.split("=") for line in out.read_text().splitlines())
    assert names["host"] == "host.example.com" and names["tag"] == f"host.example.com/team/sie:{VERSION}-cuda"


@pytest.fixture
def files(dist: Path, tmp_path: Path) -> Path:
    """Return a folder with a copy of the release in dist/."""
    shutil.copytree(dist, tmp_path / "dist")
    return tmp_path


def test_damaged_files_are_not_published(files: Path) -> None:
    step = "cd dist && sha256sum --check SHA256SUMS"
    assert run(step, files).returncode == 0
    next((files / "dist").glob("*.whl")).write_bytes(b"")
    assert run(step, files).returncode == 1


class Registry(BaseHTTPRequestHandler):
    """An npm registry that has no package and accepts every one."""

    published: list[tuple[str, str | None, list[str]]]

    def do_GET(self) -> None:
        self.answer(404)

    def do_PUT(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.published.append((self.path, self.headers["Authorization"], list(sent["versions"])))
        self.answer(201)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    """Yield the address of a registry."""
    Registry.published = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/npm/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(not LONG, reason="the tarball is built by SIE_RELEASE=long: make release-test")
def test_the_tarball_is_published_to_the_registry_of_the_operator(files: Path, registry: str) -> None:
    done = run("npm package", files, NPM_REGISTRY=registry, NPM_TOKEN="secret")
    assert done.returncode == 0, done.stderr
    assert Registry.published == [("/npm/@superlinked%2fsie-sdk", "Bearer secret", [VERSION])]
