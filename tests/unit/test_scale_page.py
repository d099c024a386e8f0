"""The tables of docs/scale.md are those that the recorded results give, and the results are those of the code."""

from __future__ import annotations

import pytest
from bench.scale import page
from bench.scale.capacity import REPLICAS, Replica, plan
from bench.scale.scenarios import Scenario, all_scenarios, run

TINY = Replica("tiny", "a toaster", 50.0, "made up", "toaster", 0.5)


def test_the_page_has_the_current_tables() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.render(text) == text, "run: python -m bench.scale.page"
    used = {name for _, name, _ in page.BLOCK.findall(text)}
    assert used == set(page.blocks())


def test_every_scenario_is_recorded_and_no_other() -> None:
    assert list(page.load_simulated().results) == all_scenarios()


@pytest.mark.parametrize("scenario", [Scenario(0.1, 1), Scenario(0.5, 4, bound=1.0)], ids=str)
def test_a_recorded_result_is_reproduced(scenario: Scenario) -> None:
    simulated = page.load_simulated()
    assert run(scenario, simulated.requests, simulated.seed) == simulated.results[scenario]


@pytest.mark.parametrize(("rate", "replicas"), [(0.1, 1), (0.3, 1), (0.5, 2), (7, 20), (1000, 2858)])
def test_a_plan_has_the_fewest_replicas_below_the_load(rate: float, replicas: int) -> None:
    found = plan(TINY, rate, lambda count: 0.6 if count == 1 else 0.7)
    assert found.replicas == replicas
    assert found.load == pytest.approx(rate * 100 / 50 / replicas)
    assert found.dollars_per_hour == 0.5 * replicas


def test_the_cost_of_a_million_documents_does_not_depend_on_the_rate_of_a_full_cluster() -> None:
    one, many = (plan(TINY, rate, lambda _: 1.0) for rate in (0.5, 500))
    assert (
        one.dollars_per_million
        == pytest.approx(many.dollars_per_million)
        == pytest.approx(0.5 / 3600 / 50 * 1e6)
    )


def test_rates_of_others_are_marked() -> None:
    assert {replica.source for replica in REPLICAS if "H100" in replica.machine} == {"published, not ours"}


def test_the_plot_is_small() -> None:
    assert 2_000 < page.PLOT.stat().st_size < 200_000
