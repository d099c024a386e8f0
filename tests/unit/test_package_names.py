"""Another project publishes packages of the same names: no version and no page may lead to them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sie_sdk
import sie_server

ROOT = Path(__file__).parents[2]
PUBLISHED = re.compile(r"""(?:pip|uv|poetry)[^\n#]* (?:install|add) [^\n#]*?(?<![\w./-])['"]?sie-\w+""")


def test_all_packages_have_one_version_with_a_local_label() -> None:
    projects = [tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")]
    assert len(projects) == 6
    assert {project["version"] for project in projects} == {sie_sdk.__version__}
    assert sie_server.__version__ == sie_sdk.__version__
    assert Version(sie_sdk.__version__).local
    for project in projects:
        for requirement in project["dependencies"]:
            if requirement.startswith("sie-"):
                allowed = SpecifierSet(requirement.removeprefix("sie-sdk"))
                assert not list(allowed.filter(["0.1.10", "1.0.0", "1.0.1"]))


def commands(text: str) -> list[str]:
    return [found[0] for found in PUBLISHED.finditer(text)]


def test_no_page_or_message_installs_a_published_package() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.suffix in {".md", ".py", ".toml", ".yaml", ".yml", ".ipynb", ".ts"} and path != Path(
            __file__
        ):
            assert not commands(path.read_text()), name


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("pip install sie-sdk", True),
        ("pip install 'sie-server[compat]'", True),
        ("pip install -U ./packages/sie-sdk sie-langchain", True),
        ("uv pip install sie-haystack", True),
        ("pip install ./packages/sie-sdk './packages/sie-server[compat]'", False),
        (
            "pip install ./packages/sie-sdk ./packages/sie-langchain   # or sie-llamaindex, sie-haystack",
            False,
        ),
    ],
)
def test_commands_are_recognised(command: str, refused: bool) -> None:
    assert bool(commands(command)) is refused
