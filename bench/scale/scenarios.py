"""The scenarios of docs/scale.md, and the latencies of each. All times are multiples of the *service time*.

The service time is the device time of an interactive request on an idle replica. So the results hold for a device of
any speed, as long as a batch is the same part of a request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import numpy as np
from bench.scale.cluster import Cluster, Shape
from bench.scale.events import Loop
from bench.scale.replica import Device
from bench.scale.routing import Rule
from bench.scale.traffic import BULK_DOCUMENTS, DOCUMENTS, Request, arrivals, mean_tokens

LOADS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COUNTS = (1, 2, 4, 16)  # of replicas
BATCH_TOKENS = 3_072  # the middle one of the sizes that the server tries on a CPU
GPU_BATCH = 16_384
BULK_SHARE = 0.3
INGRESS_SHARE = 0.01  # of the service time
WARM_UP = 0.1  # of the requests, which are not counted
TENTHS = 10


@dataclass(frozen=True)
class Scenario:
    """A cluster and its traffic."""

    load: float  # device time that arrives per second, divided by the number of replicas
    replicas: int
    split: bool = False
    bulk_share: float = 0.0  # of the load: jobs of 2,000 documents
    rule: Rule = "lane seconds"
    bound: float = 0.0  # in service times
    report: float = 0.0  # service times between two reports to the ingress
    ingresses: int = 2
    ingress_share: float = INGRESS_SHARE  # CPU time of a request in the ingress, in service times
    batch_tokens: int = BATCH_TOKENS


@dataclass(frozen=True)
class Latencies:
    """Percentiles of the interactive requests, in service times."""

    p50: float
    p95: float
    p99: float
    p99_error: float  # standard error, from the p99 of ten consecutive parts of the run


def grid() -> list[Scenario]:
    """Return the scenarios of the plot and the first table."""
    return [
        Scenario(load, replicas, split, bulk_share)
        for bulk_share in (0.0, BULK_SHARE)
        for replicas in COUNTS
        for split in ((False, True) if replicas > 1 else (False,))
        for load in LOADS
    ]


def rules() -> list[Scenario]:
    """Return the scenarios that compare routing rules."""
    names: tuple[Rule, ...] = ("round robin", "requests", "seconds", "lane seconds")
    own: tuple[Rule, ...] = ("own requests", "own requests in hash order")
    found = []
    for share in (0.0, BULK_SHARE):
        found += [Scenario(0.7, 4, bulk_share=share, rule=rule) for rule in names]
        found += [Scenario(0.7, 4, bulk_share=share, report=report) for report in (1.0, 4.0)]
        for rule in own:
            found += [Scenario(0.7, 4, bulk_share=share, rule=rule, ingresses=count) for count in (2, 8)]
    return found


def bounds() -> list[Scenario]:
    """Return the scenarios that compare bounds of the backlog."""
    return [Scenario(0.5, 4, bound=bound) for bound in (0.0, 0.5, 1.0, 2.0, 4.0)]


def batches() -> list[Scenario]:
    """Return the scenarios that compare batch sizes; with the first one, 100 documents are a bulk job."""
    return [
        Scenario(0.7, 1, bulk_share=BULK_SHARE, batch_tokens=tokens)
        for tokens in (2048, 3072, 4096, GPU_BATCH)
    ]


def on_a_gpu() -> list[Scenario]:
    """Return the scenarios that compare routing rules where a second is 38 service times, and half a second 19."""
    rules: tuple[Rule, ...] = ("requests", "own requests", "round robin", "lane seconds")
    fresh = [Scenario(0.7, 4, rule=rule, batch_tokens=GPU_BATCH) for rule in rules]
    old = [Scenario(0.7, 4, report=38.0, bound=bound, batch_tokens=GPU_BATCH) for bound in (0.0, 19.0)]
    return [*fresh, *old]


def ingresses() -> list[Scenario]:
    """Return the scenarios that compare numbers of ingress processes."""
    return [
        Scenario(0.7, 16, ingress_share=share, ingresses=count)
        for share, count in ((0.01, 1), (0.01, 2), (0.1, 2), (0.1, 4), (0.16, 2))
    ]


def all_scenarios() -> list[Scenario]:
    """Return every scenario once."""
    return list(dict.fromkeys([*grid(), *rules(), *bounds(), *batches(), *ingresses(), *on_a_gpu()]))


def run(scenario: Scenario, requests: int, seed: int = 1) -> Latencies:
    """Simulate `requests` interactive requests, and the bulk jobs that arrive in the same time."""
    device = Device(mean_tokens(DOCUMENTS), scenario.batch_tokens)  # so that the service time is one second
    loop = Loop()
    cluster = Cluster(
        loop,
        Shape(
            scenario.replicas,
            device,
            scenario.split,
            scenario.rule,
            scenario.bound,
            scenario.report,
            scenario.ingresses,
            scenario.ingress_share,
        ),
    )
    for request in traffic(scenario, device, requests, seed):
        loop.after(request.at, partial(cluster.arrive, request))
    loop.run()
    times = np.array([latency for _, latency in sorted(cluster.interactive)])
    return percentiles(times[int(WARM_UP * len(times)) :])


def percentiles(times: np.ndarray) -> Latencies:
    """Return the percentiles of latencies in order of arrival."""
    p50, p95, p99 = (round(float(np.percentile(times, percent)), 3) for percent in (50, 95, 99))
    parts = [np.percentile(part, 99) for part in np.array_split(times, TENTHS)]
    return Latencies(p50, p95, p99, round(float(np.std(parts, ddof=1)) / TENTHS**0.5, 3))


def traffic(scenario: Scenario, device: Device, requests: int, seed: int) -> list[Request]:
    """Return the arrivals: Poisson, independent for interactive requests and bulk jobs."""
    work, share = scenario.load * scenario.replicas, scenario.bulk_share  # seconds of device time per second
    found = list(arrivals(random.Random(seed), (1 - share) * work, DOCUMENTS, requests))
    if share:
        rate = share * work / device.seconds(mean_tokens(BULK_DOCUMENTS))
        jobs = round(rate * found[-1].at)
        found += arrivals(random.Random(seed + 1), rate, BULK_DOCUMENTS, jobs, bulk=True)
    return found
