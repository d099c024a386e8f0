"""The scenarios: each repeats one kind of fault under load, and waits after each until the cluster is whole again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import click
import httpx
import psutil
from bench.faults.clients import Crowd
from bench.faults.network import Host
from bench.faults.nodes import ADMIN_KEY, INGRESS, POOL, Cluster, wait_for
from bench.faults.requests import MODEL, VERSIONS

from sie_server.cluster.state import DesiredState

CUT_SHORT_S = 5.0  # shorter than the time after which Ray gives a node up
OPERATION_S = 300.0


@dataclass
class Run:
    """The cluster and its clients, as the events of one scenario use them."""

    cluster: Cluster
    crowd: Crowd


Events = Callable[[Run, int], Iterator[str]]  # yields a line after each event


def replica(run: Run, times: int) -> Iterator[str]:
    """SIGKILL of a model replica."""
    yield from _kills(run, POOL, times)


def ingress(run: Run, times: int) -> Iterator[str]:
    """SIGKILL of an ingress replica."""
    yield from _kills(run, INGRESS, times)


def _kills(run: Run, deployment: str, times: int) -> Iterator[str]:
    for number in range(times):
        members = run.cluster.members(deployment)
        names = run.cluster.wait_whole()
        victim = members[number % len(members)]
        began = time.monotonic()
        victim.kill()
        wait_for(lambda: _back(run.cluster, deployment, victim), "a replica has replaced the killed one")  # noqa: B023
        wait_for(lambda: len(run.cluster.answering() - names) == 1, "the new replica answers", 1.0)  # noqa: B023
        yield f"whole again after {time.monotonic() - began:.0f} s"


def _back(cluster: Cluster, deployment: str, victim: psutil.Process) -> bool:
    pids = {one.pid for one in cluster.members(deployment)}
    wanted = cluster.shape.replicas if deployment == POOL else len(cluster.workers)
    return victim.pid not in pids and len(pids) >= wanted


def node(run: Run, times: int) -> Iterator[str]:
    """SIGKILL of all processes of a node that carries a replica of each kind; it is started again."""
    for number in range(times):
        run.cluster.wait_whole()
        host = run.cluster.workers[number % len(run.cluster.workers)]
        wait_for(lambda: _carries_both(host), "the node carries a replica of each kind")  # noqa: B023
        began = time.monotonic()
        host.kill()
        time.sleep(3)  # the rest serves alone
        yield from _return(run, host, began)


def _carries_both(host: Host) -> bool:
    return bool(host.replicas(POOL) and host.replicas(INGRESS))


def head(run: Run, times: int) -> Iterator[str]:
    """SIGKILL of all processes of the head, whose tables are in Redis; it is started again."""
    for _ in range(times):
        names = run.cluster.wait_whole()
        began = time.monotonic()
        run.cluster.head.kill()
        time.sleep(5)
        run.cluster.start_head()
        wait_for(lambda: _controlled(run.cluster), "the head controls the cluster again", 1.0)
        back = time.monotonic() - began
        kept = len(names & run.cluster.wait_whole())
        yield f"controller back after {back:.0f} s; {kept} of {len(names)} replicas kept"


def _controlled(cluster: Cluster) -> bool:
    titles = [" ".join(one.cmdline()) for one in cluster.head.processes() if one.is_running()]
    return any("ServeController" in title for title in titles)


def link(run: Run, times: int) -> Iterator[str]:
    """The network of a node is cut until Ray has given the node up, then mended; a short cut before it."""
    for number in range(times):
        names = run.cluster.wait_whole()
        host = run.cluster.workers[number % len(run.cluster.workers)]
        began = time.monotonic()
        host.cut()
        time.sleep(CUT_SHORT_S)
        host.mend()
        kept = len(names & run.cluster.wait_whole())
        yield f"cut for {CUT_SHORT_S:.0f} s; {kept} of {len(names)} replicas kept"
        began = time.monotonic()
        host.cut()
        wait_for(lambda: _given_up(run.cluster, host), "Ray has given the cut node up", 3.0)  # noqa: B023
        given_up = time.monotonic() - began
        time.sleep(5)
        host.mend()
        time.sleep(10)
        host.kill()  # its Ray has ended, as it does when the head has given it up; a supervisor starts it anew
        for line in _return(run, host, began):
            yield f"given up after {given_up:.0f} s, {line}"


def _given_up(cluster: Cluster, host: Host) -> bool:
    return host.address not in cluster.alive()


def _return(run: Run, host: Host, began: float) -> Iterator[str]:
    """Start a node, and wait until replicas of both kinds are on it again."""
    run.cluster.start_worker(host)
    wait_for(lambda: _carries_both(host), "the node carries a replica of each kind")
    run.cluster.wait_whole()
    yield f"whole again after {time.monotonic() - began:.0f} s"


def hang(run: Run, times: int) -> Iterator[str]:
    """SIGSTOP of a model replica, which Serve's health check then replaces."""
    for _ in range(times):
        names = run.cluster.wait_whole()
        victim = run.cluster.members(POOL)[0]
        began = time.monotonic()
        victim.suspend()
        wait_for(lambda: len(run.cluster.answering() - names) == 1, "the hung replica is replaced", 1.0)  # noqa: B023
        yield f"replaced after {time.monotonic() - began:.0f} s"
        with suppress(psutil.NoSuchProcess):
            victim.kill()


def redeploy(run: Run, times: int) -> Iterator[str]:
    """The application is deployed with another option, so that all replicas are replaced."""
    for number in range(times):
        names = run.cluster.wait_whole()
        began = time.monotonic()
        run.cluster.deploy(tokenizer_threads=1 + number % 2)
        run.cluster.wait_whole(gone=names)
        yield f"all replicas replaced after {time.monotonic() - began:.0f} s"


def swaps(run: Run, times: int) -> Iterator[str]:
    """Cluster-wide swaps between two versions; during every fourth one a model replica is killed."""
    for number in range(times):
        names = run.cluster.wait_whole()
        old = desired(run.cluster)
        new = VERSIONS[1 - VERSIONS.index(old)]
        run.crowd.versions.allow(old, new)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(_swap(run.cluster, new)))  # noqa: B023
        began = time.monotonic()
        thread.start()
        kill = number % 4 == 3
        if kill:
            time.sleep(0.03)
            run.cluster.members(POOL)[number // 4 % 2].kill()
        thread.join(OPERATION_S)
        took = time.monotonic() - began
        status = answers[0].status_code if answers else 0
        if kill:
            wait_for(lambda: len(run.cluster.answering() - names) == 1, "the killed replica is back", 1.0)  # noqa: B023
        elif status != 200:
            raise click.ClickException(f"the swap failed: {answers[0].text if answers else 'no answer'}")
        run.crowd.versions.allow(desired(run.cluster))
        time.sleep(1)  # both replicas answer calls of the version that must be in effect
        yield f"status {status} after {took:.2f} s{', with a replica killed' if kill else ''}"


def _swap(cluster: Cluster, version: str) -> httpx.Response:
    return httpx.post(
        f"{cluster.url}/v1/admin/swap",
        json={"model": MODEL, "source": str(cluster.models_dir / version)},
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
        timeout=OPERATION_S,
    )


def desired(cluster: Cluster) -> str:
    """Return the version that the desired state of the cluster names, at first the one that is served."""
    wish = DesiredState(str(cluster.models_dir)).read().models.get(MODEL)
    source = (wish.source if wish else None) or VERSIONS[0]
    return next(version for version in VERSIONS if source.endswith(version))
