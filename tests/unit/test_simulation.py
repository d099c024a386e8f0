"""The simulation of docs/scale.md agrees with queueing theory, and schedules as the server does.

The tolerances are two to three times the sampling error. It is larger with exponential service times.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from math import factorial

import pytest
from bench.scale.cluster import Cluster, Shape
from bench.scale.events import Loop, Station
from bench.scale.replica import Device, Replica
from bench.scale.routing import hash_order
from bench.scale.scenarios import Scenario, run, traffic
from bench.scale.traffic import Request, job_of, job_with, mean_tokens

BATCH = 100  # tokens, in one second
DEVICE = Device(BATCH, BATCH)


def pollaczek_khinchine(rate: float, mean: float, second_moment: float) -> float:
    """Return the mean wait before one server with Poisson arrivals: λ·E[S²] / (2·(1 − λ·E[S])).

    F. Pollaczek, 1930; A. Khinchine, 1932. First come, first served.
    """
    return rate * second_moment / (2 * (1 - rate * mean))


def erlang_c(rate: float, mean: float, servers: int) -> float:
    """Return the mean wait before `servers` servers with exponential service times (A. K. Erlang, 1917)."""
    offered = rate * mean
    last = offered**servers / factorial(servers) * servers / (servers - offered)
    waits = last / (sum(offered**k / factorial(k) for k in range(servers)) + last)
    return waits / (servers / mean - rate)


def mean_latency(loop: Loop, rate: float, count: int, submit: Callable[[Callable[[], None]], None]) -> float:
    """Return the mean time from arrival to the end of `count` customers that arrive at random times."""
    rng, times, at = random.Random(7), [], 0.0

    def arrive() -> None:
        start = loop.now
        submit(lambda: times.append(loop.now - start))

    for _ in range(count):
        at += rng.expovariate(rate)
        loop.after(at, arrive)
    loop.run()
    assert len(times) == count
    return sum(times) / count


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_a_replica_with_jobs_of_one_batch_is_a_queue_with_constant_service_times(load: float) -> None:
    loop = Loop()
    replica, job = Replica(loop, DEVICE, "r"), job_with([BATCH])
    latency = mean_latency(loop, load, 50_000, partial(replica.submit, job))
    assert latency - 1 == pytest.approx(pollaczek_khinchine(load, 1, 1), rel=0.03)


def test_a_replica_with_jobs_of_two_lengths_waits_as_the_formula_says() -> None:
    loop, rng, load = Loop(), random.Random(3), 0.5
    # 51 and 100 tokens: no two of them fit into one batch
    replica, jobs = Replica(loop, DEVICE, "r"), [job_with([51]), job_with([BATCH])]
    mean, second = (0.51 + 1) / 2, (0.51**2 + 1) / 2
    latency = mean_latency(loop, load / mean, 50_000, lambda done: replica.submit(rng.choice(jobs), done))
    assert latency - mean == pytest.approx(pollaczek_khinchine(load / mean, mean, second), rel=0.03)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (3, 0.6)])
def test_a_station_waits_as_erlang_c_says(servers: int, load: float) -> None:
    loop, rng = Loop(), random.Random(5)
    station = Station(loop, servers)
    latency = mean_latency(
        loop, load * servers, 100_000, lambda done: station.serve(rng.expovariate(1), done)
    )
    assert latency - 1 == pytest.approx(erlang_c(load * servers, 1, servers), rel=0.06)


def finish_times(shape: Shape, *requests: Request) -> Cluster:
    loop = Loop()
    cluster = Cluster(loop, shape)
    for request in requests:
        loop.after(request.at, partial(cluster.arrive, request))
    loop.run()
    return cluster


def test_a_split_request_takes_as_long_as_its_largest_part_and_loses_no_work() -> None:
    device = Device(1000, 3072)
    whole, split = (finish_times(Shape(4, device, split=split), Request(0.0, 100)) for split in (False, True))
    parts = [job_of(Request(0.0, 100), part, 4).tokens for part in range(4)]
    assert sum(parts) == job_of(Request(0.0, 100)).tokens
    assert whole.interactive == [(0.0, pytest.approx(sum(parts) / 1000))]
    assert split.interactive == [(0.0, pytest.approx(max(parts) / 1000))]
    assert sum(r.busy_s for r in split.replicas) == pytest.approx(sum(r.busy_s for r in whole.replicas))


def test_a_request_is_not_split_when_one_replica_is_idle() -> None:
    device = Device(1000, 3072)
    first, second = finish_times(
        Shape(2, device, split=True), Request(0.0, 30), Request(0.001, 100)
    ).interactive
    assert first[1] == pytest.approx(job_of(Request(0.0, 30)).tokens / 1000)
    assert second[1] == pytest.approx(job_of(Request(0.0, 100)).tokens / 1000)


def test_a_bulk_job_delays_an_interactive_request_by_at_most_two_batches() -> None:
    device = Device(1000, 3072)
    cluster = finish_times(Shape(1, device), Request(0.0, 2000, bulk=True), Request(5.0, 100))
    [(_, latency)] = cluster.interactive
    alone = job_of(Request(5.0, 100)).tokens / 1000
    assert alone < latency <= alone + 2 * 3.072
    [(_, bulk)] = cluster.bulk
    assert bulk == pytest.approx((job_of(Request(0.0, 2000)).tokens + 1000 * alone) / 1000)


def test_work_below_the_bound_stays_on_the_first_replica_in_hash_order() -> None:
    device = Device(1000, 3072)
    requests = [Request(i * 0.01, 20) for i in range(6)]
    close, wide = (finish_times(Shape(3, device, bound=bound), *requests) for bound in (0.0, 1e9))
    assert [bool(replica.busy_s) for replica in wide.replicas] == [True, False, False]
    assert all(replica.busy_s for replica in close.replicas)
    names = [replica.name for replica in wide.replicas]
    assert hash_order("model", sorted(names)) == names
    assert hash_order("model", names[1:]) == names[1:]  # the others keep their order when one is gone


def test_reports_that_are_old_count_the_work_sent_since() -> None:
    device = Device(1000, 3072)
    requests = [Request(i * 0.01, 20) for i in range(3)]
    cluster = finish_times(Shape(3, device, report_s=1e9, ingresses=1), *requests)
    assert all(replica.busy_s for replica in cluster.replicas)


def test_a_rule_without_lanes_avoids_the_replica_of_a_bulk_job_and_the_rule_with_lanes_does_not() -> None:
    device = Device(1000, 3072)
    requests = [Request(0.0, 2000, bulk=True), *(Request(1 + i * 0.01, 100) for i in range(4))]
    shapes = [Shape(2, device, rule=rule) for rule in ("seconds", "lane seconds")]
    one_replica, both = (finish_times(shape, *requests).interactive for shape in shapes)
    alone = job_of(requests[1]).tokens / 1000
    assert max(latency for _, latency in one_replica) > 3.9 * alone
    assert max(latency for _, latency in both) < 3 * alone


def test_own_requests_are_counted_until_they_are_answered() -> None:
    device = Device(1000, 3072)
    at = [0.0, 0.01, 10.0, 10.01, 10.02, 10.03]  # the first two are answered after two seconds
    shape = Shape(2, device, rule="own requests in hash order", ingresses=1)
    cluster = finish_times(shape, *(Request(each, 20) for each in at))
    first, second = (replica.busy_s for replica in cluster.replicas)
    assert first == pytest.approx(second) == pytest.approx(3 * job_of(Request(0.0, 20)).tokens / 1000)


def test_the_arriving_work_is_the_load() -> None:
    device = Device(mean_tokens(100), 3072)
    scenario = Scenario(0.7, 4, bulk_share=0.3)
    found = traffic(scenario, device, 8000, seed=1)
    seconds = max(request.at for request in found)
    work = {bulk: sum(r.documents for r in found if r.bulk is bulk) / 100 / seconds for bulk in (False, True)}
    assert work[False] == pytest.approx(0.7 * 4 * 0.7, rel=0.05)
    assert work[True] == pytest.approx(0.7 * 4 * 0.3, rel=0.1)


def test_the_same_seed_gives_the_same_latencies() -> None:
    scenario = Scenario(0.8, 2, split=True)
    assert run(scenario, 300) == run(scenario, 300) != run(scenario, 300, seed=2)
