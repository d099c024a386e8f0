"""The number of replicas for the queued work."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from sie_server.cluster.replica.replica import BusyShare
from sie_server.cluster.scaling import Need, replicas_wanted

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("current", "need", "wanted"),
    [
        (0, Need(), 0),
        (0, Need(waiting=3), 1),
        (1, Need(1.9, 0.5, 5), 1),
        (1, Need(9.0, 1.0, 5), 5),
        (3, Need(5.9, 2.0, 5), 3),
        (3, Need(1.5, 1.0, 5), 2),
        (2, Need(1.5, 0.5, 5), 2),  # between half the target of one replica and that of two
        (1, Need(waiting=1), 1),
        (1, Need(), 0),
        (1, Need(0.1, 1.0, 2), 2),  # always busy, although the queue is short
        (1, Need(0.1, 0.75, 2), 1),
        (2, Need(0.1, 1.0, 2), 2),  # one replica alone would be always busy
        (2, Need(0.1, 0.65, 2), 2),
        (2, Need(0.1, 0.55, 2), 1),
        (2, Need(0.1, 1.9, 9), 3),
    ],
)
def test_the_number_follows_the_queue_and_the_busy_time(current: int, need: Need, wanted: int) -> None:
    assert replicas_wanted(current, need, target_s=2.0) == wanted


@pytest.mark.parametrize("load", [n / 20 for n in range(1, 60)])
def test_a_constant_load_leads_to_a_constant_number(load: float) -> None:
    """The busy time of all replicas is the load, or all of their time if they are too few."""
    numbers = [1]
    for _ in range(20):
        current = numbers[-1]
        numbers.append(replicas_wanted(current, Need(0.1, min(load, current), 1), target_s=2.0))
    assert len(set(numbers[-10:])) == 1
    assert numbers == sorted(numbers)


def test_the_busy_share_is_that_since_the_last_report() -> None:
    moments, busy = iter([0.0, 10.0, 20.0, 20.0]), iter([0.0, 5.0, 15.5, 15.5])
    share = BusyShare(lambda: next(busy), lambda: next(moments))
    assert [share.since_last() for _ in range(3)] == [0.5, 1.0, 0.0]
