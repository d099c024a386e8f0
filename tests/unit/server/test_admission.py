"""Admission under load, in simulated time: real queue and policy, simulated callers and device."""

from __future__ import annotations

import contextlib
import math
import random
import statistics
from collections.abc import Iterator

import pytest

from sie_server.engine.job import build_job
from sie_server.errors import QueueFull
from sie_server.serving.admission.admission import Admission, Arrival
from sie_server.serving.admission.patience import FEWEST, Patience
from sie_server.serving.device.queue import Demand, Ticket, TokenQueue
from support.requests.overload import Caller, Model, Simulation

CAPACITY = 40.0  # requests of five documents per second
QUIET_S = 0.026  # a request alone
FOREVER = 1e6


def goodput(simulation: Simulation, start: float, end: float) -> float:
    """Return the answers in that time, relative to the capacity."""
    return simulation.answers(start, end) / (end - start) / CAPACITY


@pytest.mark.parametrize("patience_s", [4 * QUIET_S, 1.0])
@pytest.mark.parametrize("times", [2, 20])
def test_impatient_callers_do_not_make_the_device_work_for_nobody(times: float, patience_s: float) -> None:
    simulation = Simulation()
    simulation.poisson(CAPACITY * times, 0, 24, patience_s)
    simulation.run(24)
    assert goodput(simulation, 12, 24) > 0.8


def test_patient_callers_are_answered_in_order_within_the_longest_wait() -> None:
    simulation = Simulation(max_wait_s=2)
    simulation.poisson(CAPACITY * 5, 0, 16, FOREVER)
    simulation.run(16)
    assert goodput(simulation, 6, 16) > 0.95
    waits = [c.answered - c.arrived for c in simulation.outcomes if c.answered]
    assert max(waits) < 2 + 0.5
    answered = [c.answered for c in simulation.outcomes if c.answered]
    assert answered == sorted(answered)


def test_few_impatient_callers_do_not_shorten_the_wait_of_others() -> None:
    simulation = Simulation()
    simulation.poisson(CAPACITY * 1.5, 0, 15, FOREVER)
    simulation.poisson(CAPACITY * 0.2, 0, 15, 0.2)
    simulation.run(15)
    assert not [c for c in simulation.outcomes if c.refused]


def test_callers_who_hang_up_at_once_change_nothing() -> None:
    simulation = Simulation()
    simulation.poisson(CAPACITY * 1.2, 0, 20, FOREVER)
    simulation.poisson(CAPACITY * 5, 0, 20, 0.02)
    simulation.run(20)
    assert not [c for c in simulation.outcomes if c.refused and c.patience == FOREVER]
    assert goodput(simulation, 10, 20) > 0.95


def test_service_recovers_when_the_overload_ends() -> None:
    simulation = Simulation()
    simulation.poisson(CAPACITY * 20, 0, 10, 4 * QUIET_S)
    simulation.poisson(CAPACITY * 0.5, 10, 20, 4 * QUIET_S)
    simulation.run(20)
    late = [c for c in simulation.outcomes if c.arrived > 11]
    assert sum(c.answered is not None for c in late) > 0.9 * len(late)


@pytest.mark.parametrize(("patience_s", "max_wait_s"), [(4 * QUIET_S, 20), (FOREVER, 1)])
def test_retry_after_is_about_the_time_until_an_eager_caller_is_accepted(
    patience_s: float, max_wait_s: float
) -> None:
    simulation = Simulation(max_wait_s=max_wait_s)
    simulation.poisson(CAPACITY * 20, 0, 24, patience_s)
    eager = [eager_caller(4 + number / 6, patience_s) for number in range(60)]
    for caller, _ in eager:
        simulation.add(caller)
    simulation.run(24)
    waits = []
    for caller, returns in eager:
        tries = [c for c in simulation.outcomes if c is caller or c.returns is returns]
        accepted = [c.arrived for c in tries if c.refused is None]
        waits.append(min(accepted, default=math.inf) - caller.arrived)
    told = [c.refused for c in simulation.outcomes if c.refused and c.arrived > 4]
    assert statistics.mean(told) == pytest.approx(statistics.median(waits), rel=0.5)
    assert len(set(told)) > 1, "refused callers would come back together"


def eager_caller(at: float, patience_s: float) -> tuple[Caller, Iterator[Caller]]:
    def tries() -> Iterator[Caller]:
        rng, again = random.Random(at), at
        while True:
            again += rng.uniform(0.08, 0.12)
            yield Caller(again, 5, patience_s)

    returns = tries()
    return Caller(at, 5, patience_s, returns=returns), returns


@pytest.mark.parametrize("priority", [None, "bulk"])
def test_interactive_callers_wait_at_most_two_batches_longer_beside_a_bulk_caller(priority: None) -> None:
    p99 = {}
    for bulk in (False, True):
        simulation = Simulation()
        simulation.poisson(16 * 0.5, 0, 40, FOREVER)
        if bulk:
            for number in range(6):
                simulation.add(Caller(number * 7.0, 2_000, FOREVER, priority))
        simulation.run(40)
        waits = [c.answered - c.arrived for c in simulation.outcomes if c.answered and c.documents == 5]
        p99[bulk] = statistics.quantiles(waits, n=100)[98]
    batch_s = Model.batch_tokens / Model.tokens_per_second
    assert p99[True] - p99[False] <= 2 * batch_s
    assert sum(c.answered is not None for c in simulation.outcomes if c.documents == 2_000) >= 1


class Device:
    """A device with a fixed backlog."""

    typical_tokens = 500

    def __init__(self, wait_s: float) -> None:
        self.wait_s, self.room_s = wait_s, 0.0
        self._queue: TokenQueue[Ticket] = TokenQueue(1_000_000)
        self.expect, self.forget = self._queue.expect, self._queue.forget

    def seconds_until_done(self, demand: Demand) -> float:
        return self.wait_s + self._queue.seconds_until_done(demand)

    def seconds_until_fit(self, demand: Demand) -> float:
        return self.room_s


def admission(device: Device, max_wait_s: float = 20.0) -> Admission:
    return Admission(device, max_wait_s, clock=lambda: 100.0, chance=lambda: 0.5)


def arrival(tokens: int = 1000, deadline: float | None = None) -> Arrival:
    return Arrival(Demand(Model(), tokens), 100.0, deadline)


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    policy = admission(Device(wait_s=2.0))
    with policy.admit(arrival(deadline=103.0), 4000):
        pass
    with (
        pytest.raises(QueueFull, match="the deadline of the request is earlier") as refused,
        policy.admit(arrival(deadline=101.5), 4000),
    ):
        pass
    assert refused.value.retry_after_s and refused.value.retry_after_s >= 1


def test_a_request_is_not_refused_for_its_own_size() -> None:
    with admission(Device(wait_s=0.0), max_wait_s=0.1).admit(arrival(tokens=10_000_000), 4000):
        pass


def test_requests_that_are_being_tokenised_count() -> None:
    policy = admission(Device(wait_s=0.0), max_wait_s=1.0)
    with contextlib.ExitStack() as earlier:
        admitted = [earlier.enter_context(policy.admit(arrival(), 4000)) for _ in range(20)]
        with pytest.raises(QueueFull), policy.admit(arrival(), 4000):
            pass
        admitted[0].queued(0)
        with policy.admit(arrival(), 4000):
            pass
    with policy.admit(arrival(), 4000):
        pass


def test_a_bulk_request_that_is_being_tokenised_does_not_keep_small_ones_out() -> None:
    policy = admission(Device(wait_s=0.0), max_wait_s=1.0)
    with policy.admit(arrival(tokens=4_000_000), 4000), policy.admit(arrival(), 4000):
        pass


def test_a_full_queue_refuses_before_tokenising() -> None:
    device = Device(wait_s=0.0)
    device.room_s = 7.0
    with pytest.raises(QueueFull, match="max_queue_tokens") as refused, admission(device).admit(arrival(), 4):
        pass
    assert refused.value.retry_after_s and 5 <= refused.value.retry_after_s <= 9


def test_an_unread_request_is_refused_only_if_no_request_has_a_chance() -> None:
    device = Device(wait_s=30.0)
    with pytest.raises(QueueFull, match=r"at most 20\.0 s are accepted"):
        admission(device).check_early(Model(), None)
    device.wait_s = 10.0
    admission(device).check_early(Model(), None)
    with pytest.raises(QueueFull, match="deadline"):
        admission(device).check_early(Model(), 99.0)


def test_large_requests_do_not_make_an_unread_request_look_large() -> None:
    device = Device(wait_s=0.0)
    device.typical_tokens = 1_000_000
    policy = admission(device, max_wait_s=1.0)
    with policy.admit(arrival(tokens=1_000_000), 4000):  # bulk work
        policy.check_early(Model(), None)


def test_tokens_are_estimated_from_the_requests_before() -> None:
    ratios, model, other = admission(Device(0)).ratios, Model(), Model()
    for _ in range(300):
        ratios.observe(model, 1000, 700)
    assert ratios.tokens(model, 1000) == pytest.approx(700, rel=0.01)
    assert ratios.tokens(other, 1000) == 250
    for _ in range(1000):  # tiny texts, of which most tokens are special ones
        ratios.observe(model, 10, 9)
    assert ratios.tokens(model, 1000) < 800


def test_the_limit_comes_back_after_the_overload() -> None:
    patience = Patience(20.0)
    for number in range(FEWEST):
        patience.left(100, 0.9, 0.01, 0.01, 50.0 + number / 10)
    assert patience.limit_s(50.5) == pytest.approx(0.225)
    patience.refused(51.0)
    assert patience.limit_s(51.0) == pytest.approx(0.225)
    assert patience.limit_s(60.0) == 20.0


def test_a_ticket_keeps_its_lane_while_it_shrinks() -> None:
    model = Model()
    ticket = Ticket(model, build_job(("score",), [], []), priority="bulk")
    assert ticket.demand.bulk and not Ticket(model, build_job(("score",), [], [])).demand.bulk


@pytest.mark.parametrize("spread_s", [0.0, 0.02])
def test_connections_that_end_with_their_process_say_nothing_about_patience(spread_s: float) -> None:
    """A proxy or a client with 16 open requests is killed, three times, while other callers are answered."""
    patience, rng = Patience(20.0), random.Random(0)
    for second in range(3):
        now = 50.0 + second
        for _ in range(16):
            patience.answered(100, now - 0.5)
        for number in range(16):
            patience.left(100, rng.uniform(0.1, 2.0), 0.01, 0.01, now + spread_s * number / 16)
        assert patience.limit_s(now + 0.1) == 20.0


def test_callers_that_began_together_and_have_one_timeout_have_lost_their_patience() -> None:
    patience = Patience(20.0)
    for burst in range(2):
        for number in range(FEWEST):
            patience.left(100, 1.0 + 0.02 * number, 0.01, 0.01, 50.0 + burst)
    assert patience.limit_s(51.1) < 1
