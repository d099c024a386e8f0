"""Settings of every test run: one math thread per worker, a marker per folder, and the time per folder at the end."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

# set before torch is imported, because workers share the cores and more math threads than cores slow each other down
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

TESTS = Path(__file__).parent
FOLDERS = ("unit", "parity", "service", "integrations", "examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its folder, so that `-m "not service"` works."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print tests and seconds per folder, summed over all workers."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            folder = report.nodeid.split("/")[1]
            seconds[folder] += report.duration
            tests[folder] += outcome != ""  # the key "" holds setup and teardown
    if not tests:
        return
    terminalreporter.section("time by folder")
    for folder in sorted(seconds, key=lambda folder: -seconds[folder]):
        terminalreporter.write_line(f"tests/{folder:<13} {tests[folder]:>5} tests {seconds[folder]:>7.1f} s")
