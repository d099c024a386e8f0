"""Each distribution: its README's example runs, its metadata is correct, and it imports only its dependencies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import sie_sdk
from support.servers.processes import Server

PACKAGES = Path(__file__).parents[3] / "packages"
SAYS = "Machine learning learns from data. 0.943\n"
CASES = {  # distribution → framework, import names that its source may use, output of its example
    "sie-langchain": ("langchain-core", {"langchain_core", "pydantic"}, SAYS + "384\n"),
    "sie-llamaindex": ("llama-index-core", {"llama_index"}, SAYS),
    "sie-haystack": ("haystack-ai", {"haystack"}, SAYS + "384\n384\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_readme_example_runs(name: str, server: Server, capsys: Any) -> None:
    example = re.search(r"```python\n(.*?)```", (PACKAGES / name / "README.md").read_text(), re.DOTALL)
    assert example is not None
    code = example[1].replace("http://localhost:8080", server.base_url)
    exec(compile(code, name, "exec"), {})  # noqa: S102  our own README
    assert capsys.readouterr().out == CASES[name][2]


@pytest.mark.parametrize("name", CASES)
def test_metadata_is_correct(name: str) -> None:
    project = tomllib.loads((PACKAGES / name / "pyproject.toml").read_text())["project"]
    assert project["version"] == sie_sdk.__version__
    assert {re.split(r"[<>=]", one)[0] for one in project["dependencies"]} == {"sie-sdk", CASES[name][0]}
    own, framework = sorted(project["dependencies"], key=lambda one: not one.startswith("sie-sdk"))
    assert own == f"sie-sdk=={sie_sdk.__version__}"
    assert ">=" in framework
    assert ",<" in framework


@pytest.mark.parametrize(
    "module", ["sie_langchain", "sie_llamaindex", "haystack_integrations.components.rankers.sie"]
)
@pytest.mark.parametrize("version", ['__version__ = "0.1.10"', ""])
def test_another_projects_sdk_is_named(module: str, version: str, tmp_path: Path) -> None:
    foreign = tmp_path / "sie_sdk" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text(version)
    path = os.pathsep.join([str(tmp_path), *(str(PACKAGES / name / "src") for name in CASES)])
    code = [sys.executable, "-c", f"import {module}"]
    run = subprocess.run(code, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ImportError: sie-")
    assert f"but {foreign} is sie-sdk {'0.1.10' if version else 'without a version'}. Another project" in last


@pytest.mark.parametrize("name", CASES)
def test_source_imports_nothing_else(name: str) -> None:
    source = PACKAGES / name / "src"
    own = {folder.name for folder in source.iterdir()}
    allowed = own | {"sie_sdk"} | CASES[name][1] | set(sys.stdlib_module_names)
    for file in source.rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import)\s+(\w+)", file.read_text(), re.MULTILINE)
        assert set(found) <= allowed, file.name
    assert list(source.rglob("py.typed"))


def test_haystacks_namespace_stays_open() -> None:
    """An __init__.py above `sie` would hide the other vendors' components."""
    source = PACKAGES / "sie-haystack" / "src"
    for folder in source.rglob("__init__.py"):
        assert folder.parent.name == "sie"
