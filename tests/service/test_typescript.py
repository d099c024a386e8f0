"""The TypeScript client (packages/sie-ts-sdk) against a real server: in Node, in Chromium, and as an installed package.

Without Node or Chromium these tests are skipped, but never in CI. tests/integrations compares its scores with those of
other clients.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoints import encoders
from support.checkpoints.colbert import make_pylate
from support.servers import processes, programs
from support.servers.processes import Server
from support.servers.programs import SDK, found, run

RERANKER, ENCODER, MINI = "BAAI/bge-reranker-v2-m3", "BAAI/bge-m3", "sie/mini-en"
KEY = "infer-91c3d7a05be2"


@pytest.fixture(scope="module")
def npm() -> str:
    return programs.npm()


@pytest.fixture(scope="module")
def page_port() -> int:
    return processes.free_port()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, models: Path, page_port: int) -> Iterator[Server]:
    """Serve the ids of the documentation, to callers with a key and to one web page."""
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("bge-m3", "colbert"):
        (folder / name).mkdir()
    encoders.make_bge_m3(folder / "bge-m3")
    make_pylate(folder / "colbert", "bert")
    named = {
        RERANKER: models / "toy/xlm-roberta",
        ENCODER: folder / "bge-m3",
        "toy/colbert": folder / "colbert",
    }
    args = [arg for name, path in named.items() for arg in ("--model", f"{name}={path}")]
    origin = f"http://localhost:{page_port}"
    args += ["--model", MINI, "--dtype", "float32", "--cors-origins", origin]
    with processes.running(folder, *args, env={"SIE_API_KEYS": KEY}) as server:
        yield server


@pytest.fixture
def client_env(guarded: Server) -> dict[str, str]:
    return {"SIE_BASE_URL": guarded.base_url, "SIE_API_KEY": KEY}


def test_units(npm: str) -> None:
    assert re.search("^# pass [1-9]", run(npm, "run", "test:unit"), re.M)


def test_in_node(npm: str, client_env: dict[str, str]) -> None:
    assert re.search("^# pass [1-9]", run(npm, "run", "test:server", env=client_env), re.M)


def test_in_chromium(npm: str, client_env: dict[str, str], page_port: int) -> None:
    browser = found("Chromium", *programs.CHROMIUM)
    env = {**client_env, "CHROMIUM": browser, "PAGE_PORT": str(page_port)}
    assert re.search("^# pass [1-9]", run(npm, "run", "test:browser", env=env), re.M)


@pytest.fixture(scope="module")
def installed(npm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with the packed package in its node_modules, as after `npm install`."""
    project = tmp_path_factory.mktemp("project")
    run(npm, "pack", "--ignore-scripts", "--pack-destination", str(project))
    (archive,) = project.glob("*.tgz")
    scope = project / "node_modules" / "@superlinked"
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        tar.extractall(scope, filter="data")
    (scope / "package").rename(scope / "sie-sdk")
    own = {name.removeprefix("package/") for name in names}
    assert own >= {
        "package.json",
        "README.md",
        "dist/esm/index.js",
        "dist/cjs/index.js",
        "dist/cjs/package.json",
    }
    assert all(name.startswith("dist/") or "/" not in name for name in own), own
    package = json.loads((scope / "sie-sdk" / "package.json").read_text(encoding="utf-8"))
    assert list(package["dependencies"]) == ["@msgpack/msgpack"]
    shutil.copytree(SDK / "node_modules/@msgpack", project / "node_modules/@msgpack")
    return project


def test_samples_compile_and_run_unchanged(
    installed: Path, guarded: Server, client_env: dict[str, str]
) -> None:
    """Run the samples of the README and the documentation; only the address is replaced."""
    blocks = re.findall(r"```typescript\n(.*?)```", (SDK / "README.md").read_text(encoding="utf-8"), re.S)
    samples = {f"readme{i}.mts": block for i, block in enumerate(blocks)}
    samples |= {path.name: path.read_text(encoding="utf-8") for path in (SDK / "test/samples").glob("*")}
    for name, text in samples.items():
        text = text.replace("http://localhost:8080", guarded.base_url)
        (installed / name).write_text(text, encoding="utf-8")
    run("node", str(SDK / "node_modules/typescript/bin/tsc"), cwd=installed)
    printed = {
        path.name: run("node", path.name, cwd=installed, env=client_env)
        for path in [*installed.glob("*.mjs"), *installed.glob("*.cjs")]
    }
    assert re.fullmatch(r"(doc-1|item-1) 0 0\.\d{3}\n(doc-1|item-1) 1 0\.\d{3}\n", printed["readme0.mjs"])
    assert "no/model" in printed["readme1.mjs"]
    assert printed["common.cjs"] == "sie/mini-en true 1.0.0\n"
    lines = printed["rerank.mjs"].splitlines()
    assert [line[:10] for line in lines[:3]] == ["Rank 0: 0.", "Rank 1: 0.", "Rank 2: 0."]
    assert lines[3].endswith(" 10") and sorted(line[:6] for line in lines[4:]) == [
        "doc-1:",
        "doc-2:",
        "doc-3:",
    ]


def test_the_lock_file_names_no_host() -> None:
    """By default npm records the host of each download; .npmrc must prevent this."""
    lock = json.loads((SDK / "package-lock.json").read_text(encoding="utf-8"))
    assert len(lock["packages"]) > 3
    assert not any("resolved" in entry for entry in lock["packages"].values())
