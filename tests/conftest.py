"""Settings of every test run: threads, certificates, order, a marker per folder, and the time of each folder."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path

import certifi
import pytest

from support import layout
from support.checkpoints import cache
from support.conformance import selection
from support.conformance.switch import clustered

# The modules of a group alternate, because tests of servers often wait and those of parity never do. Short modules run
# last, so that all workers end at about the same time.
ORDER = (
    ("cluster", "hostile"),
    ("service", "integrations", "docs", "examples", "parity"),
    ("deploy", "release", "unit"),
)

# Set before torch is imported, and inherited by every process that a test starts. With several workers, more threads
# per process would only wait for cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and the programs that tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if layout.ALL:
        layout.install()
    kept = getattr(config, "cache", None)  # shared by the workers, kept between runs and ignored by git
    if kept:
        cache.use(kept.mkdir("checkpoints"))
        trust_one_authority(kept.mkdir("certificates"))


def trust_one_authority(directory: Path) -> None:
    """Let HTTP clients read one certificate, because reading all takes 20 ms of CPU per client; no test needs any."""
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
    path = directory / f"{hashlib.sha256(first.encode()).hexdigest()[:16]}.pem"
    if not path.exists():
        written = directory / str(os.getpid())
        written.write_text(first + end, encoding="utf-8")
        written.rename(path)  # complete at once: other workers may read it
    os.environ["SSL_CERT_FILE"] = str(path)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Except all that is imported now from garbage collection, which would take 0.8 s of CPU for a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if clustered():
        selection.select(config, items)
    for item in items:
        item.add_marker(getattr(pytest.mark, folder(item.nodeid)))
    modules: dict[str, list[str]] = {}
    for name in dict.fromkeys(module(item.nodeid) for item in items):
        modules.setdefault(folder(name), []).append(name)
    places = {
        name: (next(i for i, group in enumerate(ORDER) if within in group), place / len(names))
        for within, names in modules.items()
        for place, name in enumerate(names)
    }
    items.sort(key=lambda item: places[module(item.nodeid)])


def folder(nodeid: str) -> str:
    """Return the folder of a test below tests/."""
    return nodeid.removeprefix("tests/").split("/")[0]


def module(nodeid: str) -> str:
    return nodeid.split("::")[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measurements of tests/hostile, and tests and seconds of each folder, summed over all workers."""
    show_attacks(terminalreporter)
    if clustered():
        selection.summarize(terminalreporter)
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    reports: Iterable[object] = (r for rs in terminalreporter.stats.values() for r in rs)
    for report in reports:
        if isinstance(report, pytest.TestReport):
            seconds[folder(report.nodeid)] += report.duration
            tests[folder(report.nodeid)] += report.when == "call"
    if len(seconds) < 2:
        return
    terminalreporter.section("seconds by folder, all workers together")
    for name, spent in seconds.most_common():
        terminalreporter.line(f"{spent:8.1f} s  {tests[name]:5d} tests  tests/{name}")


def show_attacks(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the row that each attack has recorded."""
    reports: Iterable[object] = (r for rs in terminalreporter.stats.values() for r in rs)
    rows = [
        dict(r.user_properties)["attack"]
        for r in reports
        if isinstance(r, pytest.TestReport) and r.when == "call" and "attack" in dict(r.user_properties)
    ]
    if not rows:
        return
    terminalreporter.section("attacks: seconds of small requests, resident memory in MiB")
    terminalreporter.line(
        f"{'attack':<38}{'held':>7}{'median':>8}{'max':>8}{'before':>8}{'peak':>8}{'after':>8}  answers"
    )
    for row in rows:
        times = f"{row['median_s']:8.3f}{row['longest_s']:8.3f}"
        memory = "".join(f"{row[key]:8.0f}" for key in ("before_mib", "peak_mib", "after_mib"))
        terminalreporter.line(f"{row['attack']:<38}{row['held_mib']:7.0f}{times}{memory}  {row['answers']}")
