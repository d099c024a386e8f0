"""Network namespaces: every node of the cluster gets an address of its own, and a link that can be cut.

Linux and the rights of root are needed. All namespaces hang on one bridge, on which this process has an address too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

BRIDGE = "siefaults"
SUBNET = "10.213.77"
HERE = f"{SUBNET}.1"  # the address of this process
STOP_WITHIN = 20.0  # seconds


@dataclass(frozen=True)
class Host:
    """One namespace, which stands for a machine."""

    name: str
    number: int

    @property
    def namespace(self) -> str:
        return f"{BRIDGE}-{self.name}"

    @property
    def link(self) -> str:
        return f"sief-{self.name}"  # an interface's name has at most 15 characters

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.number}"

    def start(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on this host; its output is appended to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command], env=env, stdout=output, stderr=output
            )

    def processes(self) -> list[psutil.Process]:
        """Return all processes of this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        found = []
        for pid in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of the replicas of a deployment on this host."""
        return [
            one for one in self.processes() if _title(one).startswith(f"ray::ServeReplica:sie:{deployment}")
        ]

    def kill(self) -> None:
        """End all processes of this host at once, as a loss of power does."""
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none may see the death of another one
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        psutil.wait_procs(self.processes(), STOP_WITHIN)

    def cut(self) -> None:
        """Lose all packets from and to this host."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Undo `cut`."""
        _ip("link", "set", self.link, "up")


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Create a namespace for each name, and remove them with all their processes at the end.

    Raises:
        click.ClickException: this machine does not permit it.
    """
    check()
    made = [Host(name, number) for number, name in enumerate(names, start=2)]
    _remove(made)  # those of a run that was killed
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{HERE}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for host in made:
            _add(host)
        yield made
    finally:
        _remove(made)


def check() -> None:
    """Check that namespaces can be made.

    Raises:
        click.ClickException
    """
    if shutil.which("ip") is None:
        raise click.ClickException("the program ip is missing; install iproute2 (Linux only)")
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces need the rights of root; run this command as root")


def _add(host: Host) -> None:
    inner = "eth0"
    _ip("netns", "add", host.namespace)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", inner, "netns", host.namespace)
    _ip("link", "set", host.link, "master", BRIDGE, "up")
    _ip("-n", host.namespace, "link", "set", "lo", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", inner)
    _ip("-n", host.namespace, "link", "set", inner, "up")


def _remove(made: list[Host]) -> None:
    for host in made:
        host.kill()
        _ip("netns", "delete", host.namespace, check=False)
        _ip("link", "delete", host.link, check=False)
    _ip("link", "delete", BRIDGE, check=False)


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise click.ClickException(f"ip {' '.join(words)}: {done.stderr.strip()}")
