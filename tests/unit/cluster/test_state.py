"""The desired state of a cluster on a shared volume."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray")

from sie_server.cluster.state import FOLDER, DesiredState, ModelWish, State
from sie_server.errors import Conflict

pytestmark = pytest.mark.unit


def load(name: str) -> ModelWish:
    return ModelWish(source=f"/models/{name}", loaded=True)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        DesiredState(str(tmp_path)).change(lambda old: old.with_model(name, load(name)))

    threads = [threading.Thread(target=write, args=(f"m{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = DesiredState(str(tmp_path)).read()
    assert found == State(8, {f"m{i}": load(f"m{i}") for i in range(8)})
    assert len(list((tmp_path / FOLDER).iterdir())) <= 8


def test_a_writer_that_stops_between_reading_and_writing_loses_nothing(tmp_path: Path) -> None:
    state, others = DesiredState(str(tmp_path)), DesiredState(str(tmp_path))
    calls = 0

    def slow(old: State) -> State:
        nonlocal calls
        calls += 1
        for i in range(12 if calls == 1 else 0):
            others.change(lambda current: current.with_model(f"m{i}", load(f"m{i}")))  # noqa: B023
        return old.with_model("slow", load("slow"))

    written = state.change(slow)
    assert calls == 2 and written == state.read()
    assert set(written.models) == {"slow", *(f"m{i}" for i in range(12))}


def test_old_generations_are_deleted_except_the_last_ones(tmp_path: Path) -> None:
    state = DesiredState(str(tmp_path))
    for i in range(12):
        state.change(lambda old: old.with_model(f"m{i}", load(f"m{i}")))  # noqa: B023
    files = sorted((tmp_path / FOLDER).iterdir())
    assert len(files) == 12
    for file in files:
        os.utime(file, (0, 0))
    last = state.change(lambda old: old.with_model("last", load("last")))
    assert [int(file.stem[-12:]) for file in sorted((tmp_path / FOLDER).iterdir())] == [9, 10, 11, 12, 13]
    assert state.read() == last


@pytest.mark.parametrize(
    "content", [b"", b'{"generation": 2', b'{"generation": 7}', b'{"generation": "2"}', b"\xff"]
)
def test_a_broken_generation_leaves_the_one_before_and_stops_writers(tmp_path: Path, content: bytes) -> None:
    state = DesiredState(str(tmp_path))
    first = state.change(lambda old: old.with_model("m", load("m")))
    broken = tmp_path / FOLDER / "state-000000000002.json"
    broken.write_bytes(content)
    assert state.read() == first
    with pytest.raises(Conflict, match=str(broken)):
        state.change(lambda old: old.with_model("m", load("other")))
    broken.unlink()
    assert state.change(lambda old: old.with_model("m", load("other"))).generation == 2
