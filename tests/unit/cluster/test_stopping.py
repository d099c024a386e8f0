"""Signals that end `serve --ray`, in a process of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sie_server.cluster.run import SIGNALS, Stop

PROGRAM = """
import os, signal, sys, time
from sie_server.cluster.run import Stop

stop = Stop()
with stop.expected():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does while it connects
    if {watched}:
        stop.watch()
    os.kill(os.getpid(), signal.{first})
    time.sleep(30)
    print("not interrupted")
print("interrupted")
if {watched}:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    stop.wait()
print("ended")
"""


@pytest.mark.parametrize(("first", "watched"), [("SIGTERM", True), ("SIGINT", True), ("SIGTERM", False)])
def test_a_signal_ends_the_start_and_later_ones_change_nothing(first: str, watched: bool) -> None:
    program = PROGRAM.format(first=first, watched=watched)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\nended\n", "")


def test_another_exit_is_no_signal() -> None:
    with pytest.raises(SystemExit, match="3"), restored(), Stop().expected():
        sys.exit(3)


@contextmanager
def restored() -> Iterator[None]:
    """Keep the handlers of this process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
