"""The long form: wheels and sdists in clean environments of each Python, the npm package in Node and a bundler.

    make release-test     # SIE_RELEASE=long; needs an index for the requirements

Interpreters are `python3.11` to `python3.13` on PATH, else those of uv or pyenv. Without one, or without a build of
torch for it, its tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.conftest import LONG, ROOT
from support.servers import processes, programs
from support.servers.processes import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LONG, reason="SIE_RELEASE=long runs it: make release-test"),
]
MINORS = (11, 12, 13)
TEXTS = "id,text\nml,Machine learning is a field of study that learns from data.\nrain,Rain is expected tomorrow.\n"
QUERY = "What is machine learning?"
NEED_TORCH = ("sie_server", "sie_kernels")
CLIENT = """
import sys
from sie_sdk import Item, SIEClient
items = [Item(id="rain", text="Rain tomorrow."), Item(id="ml", text="Machine learning learns from data.")]
with SIEClient(sys.argv[1]) as client:
    result = client.score("sie/mini-en", Item(text="What is machine learning?"), items)
print(*(entry["item_id"] for entry in result["scores"]))
"""


def ran(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    """Run a program without the packages and settings of this environment; return what it prints."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "SIE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        input=text,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def interpreter(minor: int) -> str | None:
    """Return an interpreter that can make environments, or None."""
    names = [shutil.which(f"python3.{minor}")]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", f"3.{minor}"], capture_output=True, text=True)
        names.append(found.stdout.strip() if found.returncode == 0 else None)
    names += map(str, sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")))
    check = f"import sys, venv; assert sys.version_info[1] == {minor}"
    known = (name for name in names if name)
    return next((name for name in known if subprocess.run([name, "-c", check]).returncode == 0), None)


@pytest.fixture(params=MINORS, ids=lambda minor: f"3.{minor}", scope="module")
def client(
    request: pytest.FixtureRequest, dist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Yield the interpreter of a clean environment with the wheels that need no torch."""
    base = interpreter(request.param)
    if base is None:
        pytest.skip(f"no Python 3.{request.param} here")
    folder = tmp_path_factory.mktemp("clean") / "env"
    ran(base, "-m", "venv", folder)
    python = folder / "bin/python"
    wheels = [path for path in sorted(dist.glob("*.whl")) if not path.name.startswith(NEED_TORCH)]
    ran(python, "-m", "pip", "install", "--quiet", *wheels)
    yield python
    shutil.rmtree(folder)  # a gigabyte each


@pytest.fixture(scope="module")
def python(client: Path, dist: Path) -> Path:
    """Return the interpreter of the same environment with the wheels of all packages."""
    command = [client, ROOT / "scripts/install_torch.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:  # in CI every Python must have one
        programs.missing(f"no build of torch for {client.resolve().name} here: {done.stderr[-300:]}")
    ran(client, "-m", "pip", "install", "--quiet", *sorted(dist.glob("*.whl")))
    return client


def test_wheels_of_the_clients_rerank_without_torch(client: Path, served: Server, tmp_path: Path) -> None:
    assert ran(client, "-c", CLIENT, served.base_url, cwd=tmp_path).split() == ["ml", "rain"]
    for package in (
        "sie_langchain",
        "sie_llamaindex",
        "haystack_integrations.components.rankers.sie",
    ):
        ran(client, "-W", "error::DeprecationWarning:sie_.*", "-c", f"import {package}", cwd=tmp_path)
    assert "No broken requirements" in ran(client, "-m", "pip", "check")


def test_wheels_rerank_in_a_clean_environment(python: Path, tmp_path: Path) -> None:
    version = (ROOT / "VERSION").read_text().strip()
    assert ran(python.parent / "sie-server", "--version", cwd=tmp_path).split()[-1] == version
    score = [python.parent / "sie-server", "score", "--query", QUERY, "--offline"]
    rows = [line.split("\t") for line in ran(*score, cwd=tmp_path, text=TEXTS).splitlines()]
    assert [row[2] for row in rows] == ["ml", "rain"] and float(rows[0][1]) > float(rows[1][1])
    module = ran(python, "-c", "import sie_server; print(sie_server.__file__)", cwd=tmp_path)
    assert str(python.parents[1]) in module  # not this checkout
    assert "No broken requirements" in ran(python, "-m", "pip", "check")


def test_sdists_build_and_rerank(python: Path, dist: Path, tmp_path: Path) -> None:
    sdists = sorted(dist.glob("sie_s*.tar.gz"))
    ran(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", *sdists)
    score = [python.parent / "sie-server", "score", "--query", QUERY, "--offline", "--json"]
    answer = json.loads(ran(*score, cwd=tmp_path, text=TEXTS))
    assert [each["item_id"] for each in answer["scores"]] == ["ml", "rain"]


def test_two_builds_write_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    ran(
        sys.executable,
        ROOT / "scripts/build_release.py",
        tmp_path / "again",
        "--url",
        "https://git.example.com/team/sie",
    )
    assert (tmp_path / "again/SHA256SUMS").read_bytes() == (dist / "SHA256SUMS").read_bytes()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with processes.running(tmp_path_factory.mktemp("server"), "--model", "sie/mini-en") as server:
        yield server


@pytest.fixture(scope="module")
def project(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Node project that has the tarball, a bundler and a compiler."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"name": "user", "private": true, "type": "module"}')
    [tarball] = dist.glob("*.tgz")
    ran(
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        tarball,
        "esbuild@^0.28",
        "typescript@^7",
        "@types/node@^20",
        cwd=folder,
    )
    return folder


PROGRAM = """
const client = new SIEClient(process.argv[2]);
const items = [{ id: "ml", text: "Machine learning learns from data." }, { id: "rain", text: "Rain tomorrow." }];
const result = await client.score("sie/mini-en", { text: "What is machine learning?" }, items);
console.log(result.scores.map((each) => each.itemId).join());
"""
IMPORT = 'import { SIEClient } from "@superlinked/sie-sdk";\n'


def test_the_npm_package_runs_in_node_as_module_and_as_commonjs(project: Path, served: Server) -> None:
    (project / "user.mjs").write_text(IMPORT + PROGRAM)
    assert ran("node", "user.mjs", served.base_url, cwd=project) == "ml,rain\n"
    require = 'const { SIEClient } = require("@superlinked/sie-sdk");\n'
    (project / "user.cjs").write_text(f"{require}(async () => {{{PROGRAM}}})();\n")
    assert ran("node", "user.cjs", served.base_url, cwd=project) == "ml,rain\n"
    assert {"LICENSE", "README.md", "dist", "package.json"} == {
        path.name for path in (project / "node_modules/@superlinked/sie-sdk").iterdir()
    }


def test_the_types_of_the_npm_package_are_found(project: Path) -> None:
    (project / "user.ts").write_text(IMPORT + PROGRAM + "const wrong: number = result.model;\n")
    options = [
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--types",
        "node",
        "user.ts",
    ]
    done = subprocess.run(["npx", "tsc", *options], cwd=project, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if "error TS" in line]
    assert len(errors) == 1 and "TS2322" in errors[0], done.stdout


@pytest.mark.parametrize("platform", ["node", "browser"])
def test_the_npm_package_survives_a_bundler(project: Path, served: Server, platform: str) -> None:
    (project / "bundled.mjs").write_text(IMPORT + PROGRAM)
    out = project / f"bundle-{platform}.mjs"
    options = ["--bundle", "--format=esm", "--minify", f"--platform={platform}", f"--outfile={out}"]
    ran("npx", "esbuild", "bundled.mjs", *options, cwd=project)
    assert "@superlinked" not in out.read_text()
    assert ran("node", out, served.base_url, cwd=project.parent) == "ml,rain\n"
