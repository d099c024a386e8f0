"""The requests of the clients, and the scores that one server gives them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench.local_server import running_server

from sie_sdk import Item, SIEClient
from support.checkpoints.cross_encoders import make_cross_encoder, random_text

MODEL, VERSIONS = "toy/a", ("toy/a", "toy/b")  # the served id; checkpoints between which it is swapped
ITEMS, ITEM_BYTES, QUERIES = 20, 3000, 8  # a request has 60 kB
Expected = dict[str, list[list[float]]]  # version → query → scores


def query(number: int) -> str:
    return random_text(random.Random(1000 + number), 6)


def texts() -> list[str]:
    rng = random.Random(1)
    return [random_text(rng, ITEM_BYTES)[:ITEM_BYTES] for _ in range(ITEMS)]


def items() -> list[Item]:
    return [Item(id=str(number), text=text) for number, text in enumerate(texts())]


def bodies() -> list[bytes]:
    """Return the same requests as JSON."""
    listed = [{"id": str(number), "text": text} for number, text in enumerate(texts())]
    return [json.dumps({"query": {"text": query(n)}, "items": listed}).encode() for n in range(QUERIES)]


def write_models(folder: Path) -> None:
    """Write both versions, small cross-encoders with other weights."""
    for seed, name in enumerate(VERSIONS):
        make_cross_encoder(folder / name, "bert", seed=seed)


def expected_scores(folder: Path) -> Expected:
    """Return the scores of one server with one pair a pass, so that they do not depend on other requests."""
    found: Expected = {}
    flags = ("--models-dir", str(folder), "--dtype", "float32", "--device", "cpu", "--threads", "1")
    with (
        running_server(MODEL, flags=flags, environment={"SIE_BATCH_TOKENS": "1"}) as server,
        SIEClient(server.url) as client,
    ):
        for version in VERSIONS:
            found[version] = [scores_of(client, version, number) for number in range(QUERIES)]
    return found


def scores_of(client: SIEClient, model: str, number: int) -> list[float]:
    """Return the scores of a query, in the order of the items."""
    return by_item(client.score(model, Item(text=query(number)), items())["scores"])


def by_item(entries: list[dict[str, object]]) -> list[float]:  # type: ignore[type-arg]
    ordered = sorted(entries, key=lambda entry: int(str(entry["item_id"])))
    return [float(str(entry["score"])) for entry in ordered]
