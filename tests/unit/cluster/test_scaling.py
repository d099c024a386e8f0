"""The number of replicas for the queued work."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from sie_server.cluster.scaling import replicas_wanted

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("current", "queued_s", "waiting", "wanted"),
    [
        (0, 0.0, 0, 0),
        (0, 0.0, 3, 1),
        (1, 1.9, 5, 1),
        (1, 9.0, 5, 5),
        (3, 5.9, 5, 3),
        (3, 1.5, 5, 2),
        (2, 1.5, 5, 2),  # between half the target of one replica and that of two
        (1, 0.0, 1, 1),
        (1, 0.0, 0, 0),
    ],
)
def test_the_number_follows_the_queue(current: int, queued_s: float, waiting: float, wanted: int) -> None:
    assert replicas_wanted(current, queued_s, waiting, target_s=2.0) == wanted
