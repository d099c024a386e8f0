"""A simulated cluster: the way of a request through ingress processes and model replicas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import cycle

from bench.scale.events import Loop, Station
from bench.scale.replica import Device, Replica
from bench.scale.routing import Rule, View, hash_order
from bench.scale.traffic import Request, job_of

MODEL = "model"
PART_DOCUMENTS = 25  # of the smallest part of a split request


@dataclass(frozen=True)
class Shape:
    """The parts of a cluster and their parameters; times are in seconds."""

    replicas: int
    device: Device
    split: bool = False  # large requests over idle replicas
    rule: Rule = "lane seconds"
    bound: float = 0.0  # backlog up to which hash order decides, in the unit of the rule
    report_s: float = 0.0  # between two reports of the backlogs to the ingress; 0: it knows the truth
    ingresses: int = 2
    ingress_s: float = 0.0  # CPU time of a request in its ingress process: half of it on the way back


class Ingress:
    """A process with one event loop, and its knowledge of the replicas."""

    def __init__(self, loop: Loop, shape: Shape, replicas: list[Replica], number: int) -> None:
        self.cpu = Station(loop, 1)
        self.views = [
            View(replicas, shape.rule, shape.report_s, bulk=bulk, seed=number) for bulk in (False, True)
        ]

    def sent(self, request: Request, replica: Replica, seconds: float) -> None:
        """Note work for a replica."""
        for view in self.views:
            view.sent(replica, seconds, bulk=request.bulk)

    def ended(self, replica: Replica) -> None:
        """Note that a replica has finished a part of a request."""
        for view in self.views:
            view.ended(replica)


class Cluster:
    """Runs requests through ingress processes and replicas."""

    def __init__(self, loop: Loop, shape: Shape) -> None:
        self._loop, self._shape = loop, shape
        names = hash_order(MODEL, [f"replica-{i}" for i in range(shape.replicas)])
        self.replicas = [Replica(loop, shape.device, name) for name in names]
        ingresses = [Ingress(loop, shape, self.replicas, number) for number in range(shape.ingresses)]
        self._next_ingress = cycle(ingresses)
        self.interactive: list[tuple[float, float]] = []  # arrival and latency of answered requests, seconds
        self.bulk: list[tuple[float, float]] = []

    def arrive(self, request: Request) -> None:
        """Start a request now, in the next ingress process."""
        ingress = next(self._next_ingress)
        ingress.cpu.serve(self._shape.ingress_s / 2, lambda: self._route(request, ingress))

    def _route(self, request: Request, ingress: Ingress) -> None:
        targets = self._targets(request, ingress)
        parts = len(targets)
        unfinished = set(targets)

        def finished(replica: Replica) -> None:
            ingress.ended(replica)
            unfinished.discard(replica)
            if not unfinished:
                ingress.cpu.serve(self._shape.ingress_s / 2, lambda: self._answered(request))

        for part, replica in enumerate(targets):
            job = job_of(request, part, parts)
            ingress.sent(request, replica, self._shape.device.seconds(job.tokens))
            replica.submit(job, partial(finished, replica), bulk=request.bulk)

    def _targets(self, request: Request, ingress: Ingress) -> list[Replica]:
        """Return one replica for each part of a request."""
        if self._shape.split:
            idle = [replica for replica in self.replicas if not replica.requests]
            if (parts := min(len(idle), request.documents // PART_DOCUMENTS)) > 1:
                return idle[:parts]
        return [ingress.views[request.bulk].choose(self._loop.now, self._shape.bound)]

    def _answered(self, request: Request) -> None:
        times = self.bulk if request.bulk else self.interactive
        times.append((request.at, self._loop.now - request.at))
