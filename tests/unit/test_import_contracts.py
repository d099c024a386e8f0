"""The import contracts of `make check` pass on the sources and fail on planted violations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = "packages/sie-server/src/sie_server"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without weights."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for source in sorted((ROOT / "packages").glob("*/src")):
        target = copy / source.relative_to(ROOT)
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("embedded", "__pycache__", "node_modules")
        )
    return copy


def contracts(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the copy, not over the installed packages."""
    sources = [str(path) for path in sorted((tree / "packages").glob("*/src"))]
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_sources_keep_all_contracts(tree: Path) -> None:
    result = contracts(tree)
    assert result.returncode == 0 and "BROKEN" not in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        (
            "models/spec.py",
            "from sie_server.serving.device.queue import Ticket",
            "A lower layer of the server",
        ),
        (
            "serving/requests/options.py",
            "from sie_server.serving.lifecycle.slots import Slot",
            "In serving a lower room",
        ),
        ("config/loading.py", "from sie_server.catalog import catalog", "No import circles"),
        ("engine/lora/config.py", "from sie_server.engine.lora.adapter import Adapter", "No import circles"),
        ("wire/errors.py", "import torch", "torch is imported only"),
    ],
)
def test_a_planted_import_breaks_its_contract(tree: Path, module: str, planted: str, broken: str) -> None:
    file = tree / SERVER / module
    original = file.read_text(encoding="utf-8")
    # inside a function, where Python itself would not notice it
    file.write_text(f"{original}\n\ndef planted() -> None:\n    {planted}\n", encoding="utf-8")
    try:
        result = contracts(tree)
    finally:
        file.write_text(original, encoding="utf-8")
    assert result.returncode == 1, result.stdout + result.stderr
    kept_or_broken = [line for line in result.stdout.splitlines() if broken in line]
    assert any("BROKEN" in line for line in kept_or_broken), result.stdout
