"""Progress of a work on stderr: a bar on a terminal, elsewhere one line per step."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Step(Protocol):
    """A step of a work: begun once, advanced per finished piece."""

    def begin(self, total: int, done: int) -> None:
        """`done` of the `total` pieces were finished by an earlier run."""

    def advance(self) -> None:
        """One more piece is finished."""

    def end(self) -> None:
        """No further piece follows."""


class Silent:
    """Shows nothing."""

    def begin(self, total: int, done: int) -> None:
        pass

    def advance(self) -> None:
        pass

    def end(self) -> None:
        pass


class Bar:
    """A bar on a terminal. Elsewhere the end of the step is one line."""

    def __init__(self, label: str, console: Console) -> None:
        self._label, self._console = label, console
        self._progress: Progress | None = None
        self._total = self._done = self._before = 0
        self._started = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        self._total, self._done, self._before = total, done, done
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._progress.add_task(self._label, total=total, completed=done)

    def advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        before = f", {self._before} of them by an earlier run" if self._before else ""
        seconds = time.monotonic() - self._started
        self._console.print(
            f"{self._label}: {self._done} of {self._total}{before}; {seconds:.0f} s", soft_wrap=True
        )


class Reporter:
    """Makes the step of each label."""

    def __init__(self, console: Console | None = None) -> None:
        """Without a console nothing is shown."""
        self._console = console

    def step(self, label: str) -> Step:
        """Return a new step."""
        return Bar(label, self._console) if self._console else Silent()

    def note(self, text: str) -> None:
        """Show one line."""
        if self._console:
            self._console.print(text, soft_wrap=True)
