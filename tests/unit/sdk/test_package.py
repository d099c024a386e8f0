"""The distribution imports quickly, does not depend on the server, and its metadata and README are correct."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

import sie_sdk

ROOT = Path(__file__).parents[3] / "packages" / "sie-sdk"
PROBE = """
import sys
before = len(sys.modules)
import sie_sdk
print(len(sys.modules) - before, *sorted({"torch", "sie_server", "numpy", "httpx", "asyncio"} & sys.modules.keys()))
"""


def test_import_is_fast_and_loads_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    modules, *heavy = run.stdout.split()
    assert heavy == []
    assert int(modules) < 200  # 86 with Python 3.11, in 0.05 s


def test_a_text_only_call_needs_no_numpy() -> None:
    code = """
import sys, httpx, sie_sdk
from sie_sdk.codec import encode_body
body = encode_body({"model": "m", "scores": [{"item_id": "item-0", "score": 0.5, "rank": 0}]})
network = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
with sie_sdk.SIEClient(transport=network) as client:
    client.score("m", {"text": "q"}, [{"text": "a"}])
sys.exit("numpy" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_are_sorted_once() -> None:
    assert len(set(sie_sdk.__all__)) == len(sie_sdk.__all__)
    assert all(hasattr(sie_sdk, name) for name in sie_sdk.__all__)
    assert (Path(sie_sdk.__file__).parent / "py.typed").exists()


def test_metadata_is_correct() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == sie_sdk.__version__
    names = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"httpcore", "httpx", "msgpack", "numpy"}
    for requirement in project["dependencies"]:
        assert ">=" in requirement
        assert "<" in requirement
    for name in names:
        assert importlib.metadata.version(name)


def test_source_imports_nothing_else() -> None:
    allowed = {"httpcore", "httpx", "msgpack", "numpy", "sie_sdk"} | set(sys.stdlib_module_names)
    allowed.add("opentelemetry")  # only if the program has imported it
    for file in (ROOT / "src").rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import)\s+(\w+)", file.read_text(), re.MULTILINE)
        assert set(found) <= allowed, file.name


@pytest.mark.parametrize("document", ["README.md"])
def test_the_readme_example_runs(document: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from sie_sdk.codec import encode_body

    body = encode_body(
        {
            "model": "m",
            "query_id": None,
            "scores": [
                {"item_id": "a", "score": 0.9314, "rank": 0},
                {"item_id": "b", "score": 0.0514, "rank": 1},
            ],
        }
    )
    network = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    example = re.search(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert example is not None
    plain = sie_sdk.SIEClient
    monkeypatch.setattr(sie_sdk, "SIEClient", lambda url: plain(url, transport=network))
    exec(compile(example[1], document, "exec"), {})  # noqa: S102  our own README
    assert capsys.readouterr().out == "0 a 0.931\n1 b 0.051\n"
