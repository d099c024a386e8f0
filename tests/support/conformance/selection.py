"""Which tests run with SIE_TEST_CLUSTER=1: those that start a server, except the ones that are excluded."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from support.conformance.exclusions import EXCLUDED

START = "processes.running("
TITLE = "tests of one server, run against clusters"


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that start no server, and skip those that are excluded."""
    used = [item for item in items if _starts_a_server(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(used)])
    items[:] = used
    for item in used:
        if entry := entry_of(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=EXCLUDED[entry]))


def entry_of(nodeid: str) -> str | None:
    """Return the entry that excludes a test: its own id, its function or its module."""
    test = nodeid.removeprefix("tests/")
    names = (test, test.split("[")[0], test.split("::")[0])
    return next((name for name in names if name in EXCLUDED), None)


def _starts_a_server(item: pytest.Item) -> bool:
    """Whether the test or one of its fixtures starts a server."""
    if not isinstance(item, pytest.Function):
        return False
    return any(START in inspect.getsource(one) for one in (item.function, *_fixtures(item)))


def _fixtures(item: pytest.Function) -> Iterator[Callable[..., object]]:
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        yield inspect.unwrap(definitions[-1].func)  # the nearest of this name


def summarize(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the result, and each reason with the tests that it excludes."""
    results = terminalreporter.stats
    excluded: Counter[str] = Counter(
        name
        for report in results.get("skipped", ())
        if isinstance(report, pytest.TestReport) and (name := entry_of(report.nodeid))
    )
    terminalreporter.section(TITLE)
    passed, failed = (len(results.get(outcome, ())) for outcome in ("passed", "failed"))
    terminalreporter.line(f"{passed} passed, {failed} failed, {excluded.total()} excluded:")
    for name, tests in sorted(excluded.items()):
        terminalreporter.line(f"{tests:5d}  tests/{name}: {EXCLUDED[name]}")
