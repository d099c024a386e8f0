"""The tests that clusters do not run: each entry names tests that exist, and says why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.conformance.exclusions import EXCLUDED
from support.conformance.selection import entry_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("entry", EXCLUDED)
def test_an_entry_names_tests_and_a_reason(entry: str) -> None:
    path, _, test = entry.partition("::")
    functions = {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not test or test.partition("[")[0] in functions, f"{path} has no test {test}"
    assert len(EXCLUDED[entry].split()) > 3


def test_an_entry_excludes_a_module_a_function_or_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in ("service/test_a.py", "service/test_b.py::test_c", "service/test_b.py::test_d[1]"):
        monkeypatch.setitem(EXCLUDED, entry, "reason")
    found = {
        "service/test_a.py::test_x[2]": "service/test_a.py",
        "service/test_b.py::test_c[2]": "service/test_b.py::test_c",
        "service/test_b.py::test_d[1]": "service/test_b.py::test_d[1]",
        "service/test_b.py::test_d[2]": None,
        "service/test_b.py::test_c2": None,
    }
    assert {test: entry_of(f"tests/{test}") for test in found} == found
