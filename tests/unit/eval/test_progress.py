"""Progress: a bar on a terminal, one line per step elsewhere, nothing for programs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sie_server.offline.progress import Reporter


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_shows_what_is_done_and_what_an_earlier_run_did(terminal: bool) -> None:
    written = io.StringIO()
    reporter = Reporter(Console(file=written, force_terminal=terminal, width=100, color_system=None))
    step = reporter.step("set: model")
    step.begin(total=5, done=2)
    step.advance()
    step.end()
    text = written.getvalue()
    assert "set: model: 3 of 5, 2 of them by an earlier run; 0 s" in text
    assert ("━" in text and "3/5" in text) == terminal


def test_a_label_is_not_markup() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None, markup=False)
    step = Reporter(console).step("a[b]c")
    step.begin(total=1, done=0)
    step.advance()
    step.end()
    assert "a[b]c ━" in written.getvalue() and "a[b]c: 1 of 1; 0 s" in written.getvalue()


def test_programs_see_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    step = reporter.step("quiet")
    step.begin(total=1, done=0)
    step.advance()
    step.end()
    reporter.note("quiet")
    assert capfd.readouterr() == ("", "")
