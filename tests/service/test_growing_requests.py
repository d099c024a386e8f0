"""Requests whose first batches run while their later texts are tokenised: answers, errors, hang-ups and swaps.

Only a GPU makes the server hand works over early, so the tests give the engines of this CPU a GPU's overlap.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sie_server.catalog import EMBEDDED
from sie_server.engine.device import pick_device
from sie_server.engine.engine import Engine
from sie_server.engine.job import Work
from sie_server.engine.text import slices
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.layers.int8.machine import problem
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.requests.scoring import ScorePlan
from support.checkpoints.colbert import make_pylate
from support.checkpoints.cross_encoders import make_cross_encoder, random_text
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_bge_m3, make_splade
from support.checkpoints.listwise import make_listwise
from support.servers.inprocess import asking
from support.servers.loopback import Loopback, listening
from support.waiting import eventually

QUERY = "how do stars burn"
CAUSAL = "Qwen/Qwen3-Reranker-0.6B"  # the catalog knows its template
WHOLE = (CAUSAL, "listwise")  # their sequences depend on one another
GROWING = ("pairs", "colbert", "mini", "m3")


class HandOvers:
    """Counts what requests hand over to the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.early = 0  # calls after which more follows
        self.works = 0
        hand_over = DeviceWorker.hand_over

        def counted(worker: DeviceWorker, ticket: Any, works: Sequence[Work], *, whole: bool) -> None:
            self.early += not whole
            self.works += len(works)
            hand_over(worker, ticket, works, whole=whole)

        monkeypatch.setattr(DeviceWorker, "hand_over", counted)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("growing")
    return {
        "pairs": make_cross_encoder(root / "pairs", "bert"),
        "other": make_cross_encoder(root / "other", "bert", seed=5),
        "colbert": make_pylate(root / "colbert", "bert"),
        "m3": make_bge_m3(root / "m3"),
        "splade": make_splade(root / "splade"),
        CAUSAL: make_decoder(root / "causal", "qwen3"),
        "listwise": make_listwise(root / "listwise"),
        "mini": EMBEDDED / "mini-en",
    }


@pytest.fixture(scope="module")
def client(checkpoints: dict[str, Path]) -> Iterator[TestClient]:
    with asking(checkpoints, batch_tokens=256, document_cache_mb=8) as client:
        yield client


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> HandOvers:
    monkeypatch.setattr(Engine, "overlap", 1)
    return HandOvers(monkeypatch)


def some_texts(seed: int, count: int = 60) -> list[str]:
    """Texts of 0 to 150 words; the limit is 128 tokens. Several are equal, or equal up to the limit."""
    chance = random.Random(seed)
    texts = [random_text(chance, chance.choice((0, 3, 20, 40, 60, 150))) for _ in range(count)]
    long = random_text(chance, 130)
    texts += [texts[0], texts[1], texts[0].upper(), long, long + " and more", long + " " + long]
    chance.shuffle(texts)
    return texts


def body(texts: list[str], **options: Any) -> dict[str, Any]:
    return {"query": {"text": QUERY}, "items": [{"text": text} for text in texts], "options": options}


def compare(one: Any, other: Any, path: str = "$") -> None:
    """Numbers may differ in their last bits, everything else must be equal; times are not compared."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - {"timing"}:
            compare(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            compare(*pair, f"{path}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-5), path
    else:
        assert one == other, path


def both(client: TestClient, path: str, sent: Any, monkeypatch: pytest.MonkeyPatch) -> HandOvers:
    """Send a request twice, tokenised as a whole and in pieces, and compare the answers."""
    service = client.app.state.service  # type: ignore[attr-defined]
    whole = client.post(path, json=sent)
    assert whole.status_code == 200, whole.text
    if service.documents:
        for slot in service.registry.table.by_id.values():
            for version in slot.versions:
                if version.engine and version.engine.documents:
                    version.engine.documents.forget()
    monkeypatch.setattr(Engine, "overlap", 1)
    handed = HandOvers(monkeypatch)
    grown = client.post(path, json=sent)
    compare(sorted_by_item(grown.json()), sorted_by_item(whole.json()))
    assert not service.worker._queue._tickets and not service.worker._pending
    return handed


def sorted_by_item(answer: dict[str, Any]) -> dict[str, Any]:
    if "scores" in answer:  # ranks of nearly equal scores may differ
        entries = sorted(answer["scores"], key=lambda entry: entry["item_id"])
        return {**answer, "scores": [{**entry, "rank": 0} for entry in entries]}
    return answer


@pytest.mark.parametrize(
    "options", [{}, {"max_document_tokens": 30}, {"long_document": "chunk", "max_seq_length": 64}]
)
@pytest.mark.parametrize("model", GROWING)
def test_scores_equal_those_of_a_request_tokenised_as_a_whole(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, model: str, options: dict[str, Any]
) -> None:
    handed = both(client, f"/v1/score/{model}", body(some_texts(1), **options), monkeypatch)
    assert handed.early


@pytest.mark.parametrize("model", WHOLE)
def test_models_whose_sequences_depend_on_one_another_are_tokenised_as_a_whole(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    assert not both(client, f"/v1/score/{model}", body(some_texts(2, 20)), monkeypatch).early


@pytest.mark.parametrize("model", ["m3", "splade", "colbert", "mini"])
def test_vectors_equal_those_of_a_request_tokenised_as_a_whole(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    sent = {"items": [{"text": text} for text in some_texts(3)]}
    assert both(client, f"/v1/encode/{model}", sent, monkeypatch).early


def test_equal_texts_are_read_once_and_tie(client: TestClient, early: HandOvers) -> None:
    texts = some_texts(4, 20) * 3
    answer = client.post("/v1/score/pairs", json=body(texts)).json()
    assert early.early and early.works < len(texts) // 3
    by_item = {entry["item_id"]: entry["score"] for entry in answer["scores"]}
    first = len(texts) // 3
    assert all(
        by_item[f"item-{i}"] == by_item[f"item-{i + first}"] == by_item[f"item-{i + 2 * first}"]
        for i in range(first)
    )


def test_cached_documents_are_not_read_again(client: TestClient, early: HandOvers) -> None:
    chance = random.Random(5)
    texts = [random_text(chance, 20 + i) for i in range(60)]
    first = client.post("/v1/score/colbert", json=body(texts)).json()
    read, early.works = early.works, 0
    again = client.post("/v1/score/colbert", json=body(texts)).json()
    assert read > 40 and early.works == 1  # the query
    assert again["usage"] == first["usage"]
    compare(sorted_by_item(again), sorted_by_item(first))


@pytest.mark.parametrize(
    "sent",
    [
        body(["short"] * 300),  # one sequence, but its characters say otherwise
        body(some_texts(6), long_document="refuse", max_document_tokens=20),
        body(["few words", "of a small request"]),
    ],
)
def test_some_requests_are_tokenised_as_a_whole(client: TestClient, early: HandOvers, sent: Any) -> None:
    client.post("/v1/score/pairs", json=sent)
    assert early.early == 0


def test_a_text_that_cannot_be_tokenised_fails_the_request_also_in_the_last_piece(
    client: TestClient, early: HandOvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    PanicException.__module__ = "pyo3_runtime"
    encode = TextTokenizer._encode

    def panicking(tokenizer: TextTokenizer, texts: Sequence[str], *args: Any) -> Any:
        if any(text.startswith("boom") for text in texts):
            raise PanicException("no way")
        return encode(tokenizer, texts, *args)

    monkeypatch.setattr(TextTokenizer, "_encode", panicking)
    answer = client.post("/v1/score/pairs", json=body([*some_texts(7), "boom"]))
    assert early.early and answer.status_code == 500 and "tokenizer failed" in answer.text
    service = client.app.state.service  # type: ignore[attr-defined]
    assert not service.worker._queue._tickets and not service.worker._pending
    assert client.post("/v1/score/pairs", json=body(["boo"])).status_code == 200


def test_the_bound_of_tokens_holds_over_all_pieces(
    client: TestClient, early: HandOvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = some_texts(8)
    monkeypatch.setattr(slices.Allowance.__init__, "__defaults__", (3000,))
    answer = client.post("/v1/score/pairs", json=body(texts))
    assert early.early and answer.status_code == 400
    assert "more than 3,000 tokens in all" in answer.text and "$.items" in answer.text


def test_int8_scores_equal_those_of_a_request_tokenised_as_a_whole(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem(pick_device("cpu")):
        pytest.skip("this machine has no products of 8-bit integers")
    with asking({"pairs": checkpoints["pairs"]}, dtype="int8", batch_tokens=256) as client:
        assert both(client, "/v1/score/pairs", body(some_texts(9)), monkeypatch).early


# ── a real server, which is stopped between two pieces ──


class Halt:
    """Stops the tokenising of the first request after its first batch until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, early: HandOvers) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        only = ScorePlan.only

        def halting(plan: ScorePlan, places: Sequence[int]) -> ScorePlan:
            if early.early and not self.reached.is_set():
                self.reached.set()
                assert self.gate.wait(60)
            return only(plan, places)

        monkeypatch.setattr(ScorePlan, "only", halting)


@pytest.fixture
def live(checkpoints: dict[str, Path]) -> Iterator[Loopback]:
    with listening(
        model=(f"pairs={checkpoints['pairs']}",),
        batch_tokens=256,
        source_roots=(str(checkpoints["pairs"].parent),),
    ) as server:
        assert eventually(lambda: server.get("/readyz").status_code == 200)
        yield server


def test_a_hang_up_between_two_pieces_drops_the_rest(
    live: Loopback, early: HandOvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt = Halt(monkeypatch, early)
    content = json.dumps(body(some_texts(10))).encode()
    head = f"POST /v1/score/pairs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with live.connect() as connection:
        connection.sendall(head.encode() + content)
        assert halt.reached.wait(60)
    assert eventually(lambda: "sie_cancelled_total 1.0" in live.get("/metrics").text)
    assert "sie_queue_tokens 0.0" in live.get("/metrics").text
    handed = early.works
    halt.gate.set()
    assert live.post("/v1/score/pairs", body(["stars"])).status_code == 200
    assert early.works == handed  # a small request brings its work with its ticket


def test_a_swap_between_two_pieces_does_not_mix_versions(
    live: Loopback, checkpoints: dict[str, Path], early: HandOvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = body(some_texts(11))
    expected = {"old": live.post("/v1/score/pairs", sent).json()}
    early.early = 0
    halt, answers = Halt(monkeypatch, early), list[Any]()
    caller = threading.Thread(target=lambda: answers.append(live.post("/v1/score/pairs", sent).json()))
    caller.start()
    assert halt.reached.wait(60)
    swapped = live.post("/v1/admin/swap", {"model": "pairs", "source": str(checkpoints["other"])})
    assert swapped.status_code == 200, swapped.text
    expected["new"] = live.post("/v1/score/pairs", sent).json()
    halt.gate.set()
    caller.join(60)
    compare(sorted_by_item(answers[0]), sorted_by_item(expected["old"]))
    with pytest.raises(AssertionError):
        compare(sorted_by_item(answers[0]), sorted_by_item(expected["new"]))
