"""The desired state of a cluster on a shared volume."""

from __future__ import annotations

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
