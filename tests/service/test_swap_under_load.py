"""A real server swaps its model while real clients score: no request fails or mixes two versions."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from sie_sdk import SIEClient
from sie_sdk.types import Item
from support.checkpoints import cross_encoders
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually

CLIENTS, SWAPS = 16, 20
QUERY = "how do stars burn"
ITEMS = [Item(text=text) for text in ("stars burn hydrogen", "rain falls tomorrow", "lawyers argue", "")]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("versions")
    made = {
        name: cross_encoders.make_cross_encoder(root / name, "bert", seed=seed)
        for seed, name in enumerate("ab")
    }
    for name in ("tokenizer.json", "config.json"):  # training a tokenizer again may give a different one
        shutil.copy(made["a"] / name, made["b"])
    broken = root / "broken"
    shutil.copytree(made["b"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return {**made, "broken": broken}


def scores(client: SIEClient) -> tuple[float, ...]:
    """Return the scores in the order of the items."""
    entries = client.score("m", Item(text=QUERY), ITEMS)["scores"]
    return tuple(entry["score"] for entry in sorted(entries, key=lambda entry: entry["item_id"]))


def swap(server: Server, source: Path, status: int = 200) -> None:
    answer = server.post("/v1/admin/swap", {"model": "m", "source": str(source)})
    assert answer.status_code == status, answer.text


@pytest.mark.slow
def test_twenty_swaps_do_not_affect_sixteen_clients(tmp_path: Path, versions: dict[str, Path]) -> None:
    # one pair per pass, so that other requests do not change the last bits of an answer
    args = ["--model", f"m={versions['a']}", "--source-roots", str(versions["a"].parent)]
    with processes.running(tmp_path, *args, "--dtype", "float32", "--batch-tokens", "8") as server:
        over, answered = Event(), list[int]()

        def client(_: int) -> Counter[tuple[float, ...]]:
            found: Counter[tuple[float, ...]] = Counter()
            with SIEClient(server.base_url) as sdk:
                while not over.is_set():
                    found[scores(sdk)] += 1
                    answered.append(1)
            return found

        with SIEClient(server.base_url) as sdk:
            wanted = {"a": scores(sdk)}
            swap(server, versions["b"])
            wanted["b"] = scores(sdk)
        assert wanted["a"] != wanted["b"]
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(client, i) for i in range(CLIENTS)]
            for turn in range(SWAPS):
                before = len(answered)
                assert eventually(lambda: len(answered) > before + CLIENTS)  # noqa: B023
                swap(server, versions["ab"[turn % 2]])
                if turn % 5 == 0:
                    swap(server, versions["broken"], 502)  # the old version keeps serving
            over.set()
            answers = sum((future.result() for future in running), Counter())
        print({name: answers[value] for name, value in wanted.items()}, "answers")
        assert set(answers) <= set(wanted.values()) and all(answers[value] for value in wanted.values())
        assert server.metric("sie_model_swaps_total", model="m") == SWAPS + 1
        # the client retries after some errors, so check that the server counted none
        text = server.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("sie_requests_total")]
        assert lines and all('status="200"' in line for line in lines)
        assert sum(float(line.split()[-1]) for line in lines) == sum(answers.values()) + 2
