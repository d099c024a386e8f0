"""The parts of `bench.cluster_faults` that need no cluster: how answers are judged and counted."""

from __future__ import annotations

import click
import httpx
import pytest
from bench.cluster_faults import SCENARIOS, chosen_of
from bench.faults.clients import Tally, Versions, kind_of
from bench.faults.report import table
from bench.faults.requests import ITEM_BYTES, ITEMS, by_item, texts
from bench.faults.reruns import Reruns

EXPECTED = {"a": [[0.1, 0.2]], "b": [[0.3, 0.4]]}


def test_an_answer_comes_from_one_version_that_is_in_effect() -> None:
    versions = Versions(EXPECTED, "a")
    began = versions.now()
    assert versions.problem(0, [0.1, 0.2], began) == ""
    assert "no version" in versions.problem(0, [0.1, 0.4], began)  # a mixture
    assert "replaced" in versions.problem(0, [0.3, 0.4], began)
    versions.allow("a", "b")
    assert versions.problem(0, [0.3, 0.4], began) == ""
    versions.allow("b")
    assert versions.problem(0, [0.1, 0.2], began) == ""  # the call began before
    assert "replaced" in versions.problem(0, [0.1, 0.2], versions.now())


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (httpx.ReadError("reset"), "ReadError"),
        (httpx.Response(500, text="Internal Server Error"), "500 of the proxy"),
        (
            httpx.Response(503, headers={"X-SIE-Server-Version": "1", "X-SIE-Error-Code": "MODEL_LOADING"}),
            "503 MODEL_LOADING",
        ),
    ],
)
def test_a_failure_of_a_plain_client_has_a_kind(
    outcome: httpx.Response | httpx.TransportError, kind: str
) -> None:
    assert kind_of(outcome) == kind


def test_reruns_of_a_killed_replica_stay_counted() -> None:
    reruns = Reruns()
    reruns.look(
        'sie_reruns_total{pool="toy",replica="one"} 3.0\nsie_reruns_total{pool="toy",replica="two"} 1.0'
    )
    reruns.look(
        'sie_reruns_total{pool="toy",replica="two"} 2.0\nsie_reruns_created{pool="toy",replica="two"} 9.0'
    )
    assert reruns.total == 5


def test_failures_are_counted_by_kind() -> None:
    tally = Tally()
    tally.add(0.5)
    tally.add(2.0, failed="ReadError", detail="reset")
    tally.add(1.0, wrong=True, detail="query 0")
    figures = tally.figures()
    assert (figures["calls"], figures["failed"], figures["wrong"], figures["slowest_s"]) == (3, 1, 1, 2.0)
    assert figures["kinds"] == {"ReadError": 1}
    row = {"scenario": "node", "times": 1, "reruns": 4, "sdk": Tally().figures(), "plain": figures}
    assert list(table([row]).columns[-1].cells) == ["1 × ReadError"]


def test_a_request_has_60_kb() -> None:
    assert ITEMS * ITEM_BYTES == 60_000 and {len(text) for text in texts()} == {ITEM_BYTES}
    assert by_item([{"item_id": "10", "score": 0.1}, {"item_id": "9", "score": 0.2}]) == [0.2, 0.1]


def test_scenarios_are_chosen_by_name_and_number() -> None:
    assert chosen_of(()) == SCENARIOS
    assert [(one.name, one.times) for one in chosen_of(("swaps", "node=2"))] == [("swaps", 20), ("node", 2)]
    for wrong in ("nodes", "node=0", "node=many"):
        with pytest.raises(click.BadParameter, match="expected NAME"):
            chosen_of((wrong,))
