"""Swaps with replay: the figures of a comparison, and the bounds of the buffer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from sie_server.cluster.ingress.admin import ClusterAdmin
from sie_server.config import ServerConfig
from sie_server.errors import InvalidInput
from sie_server.serving.operators.differences import Differences, Scored, overlap, share_of_swapped_pairs
from sie_server.serving.operators.replay_buffer import ITEM_BYTES, MOST_DOCUMENTS, ReplayBuffer
from sie_server.serving.requests.candidates import Candidates, candidates_of
from sie_server.serving.requests.options import parse_options
from sie_server.wire import Item, ScoreRequest

OPTIONS = parse_options({}, "$", "score", {})


def candidates(*texts: str) -> Candidates:
    return candidates_of(ScoreRequest(Item(text="q"), [Item(text=text) for text in texts]))


def test_the_share_of_swapped_pairs_is_that_of_kendall() -> None:
    values = np.random.default_rng(0)
    for size in (2, 3, 10, 50):
        old, new = values.permutation(size).tolist(), values.permutation(size).tolist()
        share = share_of_swapped_pairs(old, new)
        assert share is not None
        assert 1 - 2 * share == pytest.approx(kendalltau(old, new).statistic)
    assert share_of_swapped_pairs([1, 2, 3], [1, 2, 3]) == 0 and share_of_swapped_pairs([1, 2], [2, 1]) == 1
    assert share_of_swapped_pairs([1.0], [2.0]) is None
    assert share_of_swapped_pairs([1, 1], [1, 2]) == 0.5 and share_of_swapped_pairs([1, 1], [2, 2]) == 0


def test_the_overlap_is_that_of_the_best_documents() -> None:
    assert overlap([3, 2, 1, 0], [0, 1, 2, 3], 2) == 0 and overlap([3, 2, 1, 0], [2, 3, 1, 0], 2) == 1
    assert overlap([1.0, 2.0], [2.0, 1.0]) == 1  # of fewer than ten


def test_a_report_averages_requests_and_counts_refused_ones_as_different() -> None:
    found = Differences()
    found.add(Scored([1, 2], [0.1, 0.2], 10), Scored([1, 2], [0.3, 0.2], 20))
    found.add(Scored([1, 2], [0.1, 0.2], 10), Scored([2, 1], [0.1, 0.6], 10))
    report = found.report(0.5, switched=True)
    assert (report.requests, report.difference, report.kendall_tau, report.top10_overlap) == (2, 0.5, 0, 1)
    assert report.score_shift == pytest.approx(0.15) and report.largest_shift == pytest.approx(0.4)
    assert report.latency_ratio == 1.5 and report.switched
    for number in range(12):
        found.refuse(f"reason {number % 11}")
    after = found.report(None, switched=False)
    assert after.refused_requests == 12 and after.difference == pytest.approx(13 / 14)
    assert len(after.refused) == 10 and (after.refused[0].reason, after.refused[0].requests) == (
        "reason 0",
        2,
    )
    nothing = Differences().report(0.1, switched=False)
    assert nothing.difference is nothing.kendall_tau is nothing.latency_ratio is nothing.largest_shift is None


def test_the_buffer_is_bounded_in_requests_and_bytes() -> None:
    buffer = ReplayBuffer(3, 20_000)
    for number in range(5):
        buffer.add("a", OPTIONS, [candidates(str(number))])
    assert [one.candidates.texts for one in buffer.last("a", 2)] == [["3"], ["4"]]
    assert len(buffer.last("a", 9)) == 3 and not buffer.last("b", 9)
    small = buffer.nbytes
    buffer.add("b", OPTIONS, [candidates("x" * 19_000)])
    assert len(buffer.last("b", 9)) == 1 and buffer.nbytes <= 20_000
    assert len(buffer.last("a", 9)) < 3  # the oldest of all models are dropped first
    buffer.add("b", OPTIONS, [candidates("x" * 20_000)])
    assert len(buffer.last("b", 9)) == 1  # a request above the bound is not kept
    assert small > 3 * 2 * ITEM_BYTES


def test_only_requests_that_can_be_compared_are_kept() -> None:
    buffer, off = ReplayBuffer(9, 2**30), ReplayBuffer(0, 2**30)
    off.add("m", OPTIONS, [candidates("a")])
    buffer.add("m", OPTIONS, [candidates("a"), candidates("b")])
    buffer.add("m", OPTIONS, [candidates(*["a"] * (MOST_DOCUMENTS + 1))])
    buffer.add("m", OPTIONS, [Candidates(candidates("a").request, "q", None)])
    buffer.add("m", OPTIONS, [Candidates(candidates("a").request, None, ["a"])])
    assert not buffer.last("m", 9) and not buffer.nbytes and not off.last("m", 9)


async def test_a_cluster_refuses_it_by_name() -> None:
    admin = ClusterAdmin(ServerConfig(), lambda model: [], lambda name: None)
    with pytest.raises(InvalidInput, match=r"omit replay .*\$\.replay"):
        await admin.swap("m", "org/m", replay=3)
