"""Damaged files in the hub's cache: downloaded again while the hub answers, named without it, and never served."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from support.checkpoints import cross_encoders
from support.servers import hub, processes
from support.servers.damages import KINDS, Cache, damage
from support.servers.hub import Hub
from support.servers.processes import Server
from support.waiting import eventually

MODEL = "org/model"
QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]
ROUNDS = int(os.environ.get("SIE_CACHE_ROUNDS", "0"))  # 0: one of each kind
SEED = int(os.environ.get("SIE_CACHE_SEED", "1"))


# Another process on the same cache: fetches, and prints the commit and the hash of the weights; at most N bytes a file
FETCH = """
import hashlib, logging, resource, sys
from sie_server.engine.storage.source import fetch
logging.basicConfig()
if limit := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
directory = fetch(sys.argv[1], revision=None, offline=False)
print(directory.name, hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest())
"""


class Place(NamedTuple):
    """Two servers on one cache, one of them without the hub, and what is right."""

    home: Path
    theirs: Hub
    online: Server
    offline: Server
    cache: Cache
    old: list[float]
    new: list[float]


def load(server: Server, **more: str) -> tuple[list[float] | None, str]:
    """Load the model anew; return its scores and warning, or None and the error message."""
    server.post("/v1/admin/unload", {"model": "m"})
    answer = server.post("/v1/admin/load", {"model": "m", "source": MODEL, **more})
    if answer.status_code == 200:
        return server.scores("m", QUERY, TEXTS), server.get("/v1/models/m").json()["warning"] or ""
    assert answer.status_code == 502, answer.text
    return None, answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    folder = home / "hub/hub/models--org--model"
    cross_encoders.make_cross_encoder(root / MODEL, "bert", seed=1)
    with ExitStack() as stack:
        theirs = stack.enter_context(hub.running(root))
        online = stack.enter_context(processes.running(home, env={"HF_ENDPOINT": theirs.url}))
        offline = stack.enter_context(processes.running(home, "--offline"))
        old, _ = load(online)
        shutil.copytree(folder, home / "old", symlinks=True)
        cross_encoders.make_cross_encoder(root / MODEL, "bert", seed=2)
        shutil.rmtree(folder)
        new, _ = load(online)
        shutil.copytree(folder, home / "new", symlinks=True)
        assert old and new and old != new
        yield Place(home, theirs, online, offline, Cache(folder, home / "old", home / "new"), old, new)


def test_damages_are_mended_or_named_and_never_served(place: Place) -> None:
    dice = random.Random(SEED)
    kinds = dice.choices(KINDS, k=ROUNDS) if ROUNDS else KINDS
    outcomes = {"served without the hub": 0, "named without the hub": 0, "mended with the hub": 0}
    for kind in kinds:
        done = damage(place.cache, kind, dice)
        scores, said = load(place.offline)
        if scores is None:
            outcomes["named without the hub"] += 1
            assert "damaged in the hub's cache" in said and "offline mode is on" in said, (done, said)
            for path in re.findall(r"Delete the file (\S+)", said):
                assert Path(path).is_relative_to(place.cache.folder) and Path(path).is_file(), (done, said)
        else:
            outcomes["served without the hub"] += 1
            assert scores == (place.old if kind == "update" else place.new), done
            assert ("is incomplete in the hub's cache" in said) == (kind == "update"), (done, said)
        assert load(place.online) == (place.new, ""), done
        outcomes["mended with the hub"] += 1
        assert load(place.offline) == (place.new, ""), done  # the hub is needed once
    print(outcomes)
    assert outcomes["named without the hub"] and outcomes["served without the hub"]


def fetching(place: Place, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, MODEL, str(limit)],
        env=processes.environment(place.home, {"HF_ENDPOINT": place.theirs.url}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held(theirs: Hub, name: str) -> Iterator[None]:
    """Let the hub send only the first half of a file."""
    theirs.held = name
    try:
        yield
    finally:
        theirs.held = None


def test_an_update_that_is_killed_leaves_the_version_before_it(place: Place) -> None:
    place.cache.renew(update=True)
    with held(place.theirs, "model.safetensors"):
        process = fetching(place)
        part = f"blobs/{place.cache.weights}*.incomplete"
        assert eventually(lambda: any(place.cache.folder.glob(part)))
        process.kill()
        process.communicate()
    scores, warning = load(place.offline)
    assert scores == place.old
    assert re.search(r"the update to commit [0-9a-f]{40} is incomplete .* is missing", warning)
    assert eventually(lambda: warning in place.offline.log)
    # a revision that was requested is not replaced
    old, new = place.cache.commits
    assert load(place.offline, revision=old)[0] == place.old
    scores, error = load(place.offline, revision=new)
    assert scores is None and " is missing" in error
    assert load(place.online) == (place.new, "")


def test_an_update_for_which_the_disk_is_full_leaves_the_version_before_it(place: Place) -> None:
    place.cache.renew(update=True)
    old, _ = place.cache.commits
    process = fetching(place, limit=100_000)  # the tokenizer fits, the weights do not
    out, err = process.communicate(timeout=60)
    assert out.startswith(old), err
    assert "from the hub's cache: OSError" in err and "is incomplete in the hub's cache" in err


def test_processes_that_mend_a_file_at_once_do_not_disturb_each_other(place: Place) -> None:
    for kind in ("flipped", "truncated"):
        damage(place.cache, kind, random.Random(SEED), "model.safetensors")
        others = [fetching(place) for _ in range(2)]
        assert load(place.online) == (place.new, "")
        said = [process.communicate(timeout=60) for process in others]
        assert {out.strip() for out, _ in said} == {f"{place.cache.commits[1]} {place.cache.weights}"}, said


def test_a_hub_that_sends_another_content_than_it_names_is_not_believed(place: Place) -> None:
    place.cache.renew(update=True)
    place.theirs.spoiled = "model.safetensors"
    try:
        scores, warning = load(place.online)
    finally:
        place.theirs.spoiled = None
    old, new = place.cache.commits
    assert (scores, warning) == (place.old, f"the update to commit {new} failed; commit {old} is served")
    again = "the hub sent model.safetensors again, and it has another content"
    assert eventually(lambda: again in place.online.log)
    assert load(place.online) == (place.new, "")
