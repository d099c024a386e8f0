"""Damaged files in the hub's cache: downloaded again while the hub answers, named without it, and never served."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from support.checkpoints import cross_encoders
from support.servers import hub, processes
from support.servers.damages import KINDS, Cache, damage
from support.servers.hub import Hub
from support.servers.processes import Server

MODEL = "org/model"
QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]
ROUNDS = int(os.environ.get("SIE_CACHE_ROUNDS", "0"))  # 0: one of each kind
SEED = int(os.environ.get("SIE_CACHE_SEED", "1"))


class Place(NamedTuple):
    """Two servers on one cache, one of them without the hub, and what is right."""

    theirs: Hub
    online: Server
    offline: Server
    cache: Cache
    old: list[float]
    new: list[float]


def load(server: Server) -> tuple[list[float] | None, str]:
    """Load the model anew; return its scores and warning, or None and the error message."""
    server.post("/v1/admin/unload", {"model": "m"})
    answer = server.post("/v1/admin/load", {"model": "m", "source": MODEL})
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
        yield Place(theirs, online, offline, Cache(folder, home / "old", home / "new"), old, new)


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
