"""Named sets of options, asked of the real application under ids that have them in the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from sie_server.errors import InvalidInput
from sie_server.serving.requests.options import parse_options
from sie_server.wire import Profile
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_bge_m3
from support.servers.inprocess import ask, asking, in_order, post

M3, QWEN = "BAAI/bge-m3", "Qwen/Qwen3-Reranker-0.6B"
QUERY, TEXTS = "machine learning", ["learning from data", "rain tomorrow", "the machine learns"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("profiles")
    models = {M3: make_bge_m3(root / "m3"), QWEN: make_decoder(root / "qwen", "qwen3")}
    with asking(models) as client:
        yield client


def test_a_profile_is_its_options(client: TestClient) -> None:
    dense, sparse = (ask(client, M3, QUERY, TEXTS, score_mode=mode) for mode in ("dense", "sparse"))
    assert dense["scores"] != sparse["scores"]
    assert ask(client, M3, QUERY, TEXTS, profile="dense") == dense
    assert ask(client, M3, QUERY, TEXTS, profile="dense", score_mode="sparse") == sparse
    assert ask(client, M3, QUERY, TEXTS, profile="default") == ask(client, M3, QUERY, TEXTS)


def test_the_catalog_entry_holds_for_a_local_copy_too(client: TestClient) -> None:
    info = client.get(f"/v1/models/{M3}").json()
    assert info["profiles"] == ["default", "dense", "multivector", "sparse"] and info["license"] == "MIT"


def test_an_unknown_profile_is_refused_with_the_known_ones(client: TestClient) -> None:
    message = ask(client, M3, QUERY, TEXTS, 400, profile="fast")["error"]["message"]
    assert "default, dense, multivector, sparse" in message and "$.options.profile" in message
    body = {"items": [{"text": "a"}], "params": {"options": {"profile": "fast"}}}
    assert "$.params.options.profile" in post(client, f"/v1/encode/{M3}", body, 400)["error"]["message"]


def test_the_requests_instruction_beats_its_option(client: TestClient) -> None:
    def asked(**more: Any) -> Any:
        body = {"query": {"text": QUERY}, "items": [{"text": text} for text in TEXTS], **more}
        return post(client, f"/v1/score/{QWEN}", body)

    one, two = asked(instruction="find laws"), asked(options={"instruction": "find recipes"})
    both = asked(instruction="find laws", options={"instruction": "find recipes"})
    assert in_order(one) != in_order(two) and in_order(both) == in_order(one)
    assert "warnings" not in one and "`options.instruction`" in both["warnings"][0]


PROFILES = {"laws": Profile(instruction="find laws", top_n=3, is_query=True, max_seq_length=64)}


def test_a_profiles_options_are_those_of_the_route() -> None:
    score = parse_options({"profile": "laws", "top_n": 1}, "$", "score", PROFILES)
    assert (score.known.top_n, score.known.max_seq_length, score.known.is_query) == (1, 64, None)
    encode = parse_options({"profile": "laws"}, "$.params", "encode", PROFILES)
    assert (encode.known.top_n, encode.known.is_query) == (None, True)
    assert not score.warnings and not encode.warnings
    default = parse_options({}, "$", "score", {"default": Profile(top_n=2)})
    assert default.known.top_n == 2


@pytest.mark.parametrize(
    ("request_field", "option", "expected", "at"),
    [
        (None, None, "find laws", None),
        (None, "b", "b", "$.options.instruction"),
        ("a", "b", "a", "$.instruction"),
        ("", "", "find laws", None),
    ],
)
def test_where_an_instruction_comes_from(
    request_field: str | None, option: str | None, expected: str, at: str | None
) -> None:
    raw = {"profile": "laws", "instruction": option}
    found = parse_options(raw, "$", "score", PROFILES, instruction=request_field).instruction
    assert (found.text, found.path) == (expected, at)


@pytest.mark.parametrize("wrong", [{"temperature": 1}, {"top_n": 0}, {"profile": "other"}])
def test_a_wrong_profile_is_not_a_profile(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Profile)
    with pytest.raises(InvalidInput):
        parse_options({"profile": "none"}, "$", "score", {})
