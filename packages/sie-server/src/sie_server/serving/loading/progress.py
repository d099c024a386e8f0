"""How far a load has come, and how long the rest will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from sie_server.engine.storage.tally import Tally
from sie_server.wire import LoadProgress

Phase = Literal["fetch", "room", "load", "measure", "probe"]
FIRST_ESTIMATE_S = 5.0  # before any rate is known


@dataclass(eq=False)
class Progress:
    """A load in progress. The fetching thread updates `tally` first, then the thread that reads the weights."""

    started: float = field(default_factory=time.monotonic)
    phase: Phase = "fetch"
    phase_started: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Start a phase; `total` is the number of bytes it has to process."""
        self.phase, self.phase_started = phase, time.monotonic()
        if total is not None:
            self.tally = Tally(total=total)

    def remaining_s(self, bytes_per_second: float | None, now: float) -> float:
        """Estimate the seconds left.

        The estimate uses the rate of this load, else the rate of earlier loads, else the time the load has taken so
        far.
        """
        elapsed, total = now - self.phase_started, self.tally.total
        done = self.tally.nbytes - self.tally.before
        if self.phase in ("fetch", "load") and total and done > 0:
            return elapsed * max(0, total - self.tally.nbytes) / done
        if self.phase == "load" and total and bytes_per_second:
            return max(0.0, total / bytes_per_second - elapsed)
        return max(now - self.started, FIRST_ESTIMATE_S)

    def wire(self) -> LoadProgress:
        """The progress as `GET /v1/models` shows it."""
        seconds = round(time.monotonic() - self.started, 1)
        return LoadProgress(self.phase, seconds, self.tally.nbytes, self.tally.total)
