"""The dialects refuse bad input in the vendor's error format, name the caller's fields, and ignore none silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest
import voyageai

from support.requests.questions import KEY, LONG, PROBABILITY, QUERY, TEXTS
from support.servers import processes
from support.servers.processes import Server

BODIES: dict[str, dict[str, Any]] = {
    "/v2/rerank": {"query": "rain", "documents": ["rain"]},
    "/v1/rerank": {"query": "rain", "documents": ["rain"]},
    "/voyage/v1/rerank": {"query": "rain", "documents": ["rain"]},
    "/infinity/rerank": {"query": "rain", "documents": ["rain"]},
    "/vllm/rerank": {"query": "rain", "documents": ["rain"]},
    "/tei/rerank": {"query": "rain", "texts": ["rain"]},
    "/v1/ranking": {"query": {"text": "rain"}, "passages": [{"text": "rain"}]},
    "/score": {"text_1": "rain", "text_2": ["rain"]},
    "/embed": {"inputs": "rain"},
}
OPENAI = {"message", "type", "param", "code"}


def message_of(path: str, answer: httpx.Response) -> str:
    """Return the message, and check the vendor's error format of the path."""
    body = answer.json()
    if path.startswith(("/v2", "/cohere")):
        assert set(body) - {"detail"} == {"message"}
        return str(body["message"])
    if path in ("/v1/rerank", "/jina/v1/rerank", "/voyage/v1/rerank"):
        assert set(body) <= {"detail", "message"}
        return str(body["detail"])
    if path in ("/tei/rerank", "/embed", "/info", "/rerank"):
        assert set(body) == {"error", "error_type"}
        assert body["error_type"] in ("Validation", "Overloaded", "Backend")
        return str(body["error"])
    if path.endswith("/ranking"):
        assert set(body) == {"error"}
        return str(body["error"])
    assert set(body) == {"error"} and set(body["error"]) == OPENAI
    assert body["error"]["code"] == answer.status_code
    return str(body["error"]["message"])


def refused(server: Server, path: str, body: Any, *words: str, status: int = 400) -> None:
    answer = server.post(path, body)
    assert answer.status_code == status, answer.text
    message = message_of(path, answer)
    assert all(word in message for word in words), message
    assert "$.items" not in message and "$.options" not in message
    assert answer.headers["x-sie-error-code"]


@pytest.mark.parametrize("path", BODIES)
def test_not_an_object(server: Server, path: str) -> None:
    for body in (b"[]", b"{", b"", b'"x"', b"\xff"):
        refused(server, path, body)


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_model_or_adapter_is_a_404(server: Server, path: str) -> None:
    refused(server, path, {**BODIES[path], "model": "rerank-v3.5"}, "rerank-v3.5", status=404)
    adapter = f"{'toy/encoder' if path == '/embed' else PROBABILITY}:none"
    refused(server, path, {**BODIES[path], "model": adapter}, "adapter", "'none'", status=404)


@pytest.mark.parametrize("path", BODIES)
def test_every_missing_field_is_named(server: Server, path: str) -> None:
    for field in BODIES[path]:
        rest = {name: value for name, value in BODIES[path].items() if name != field}
        refused(server, path, rest, "missing required field")
        refused(server, path, {**rest, field: 5}, f"$.{field}")


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/embed"])
def test_invalid_lists_of_documents(server: Server, path: str) -> None:
    field = list(BODIES[path])[1]
    refused(server, path, {**BODIES[path], field: []}, f"$.{field}", "at least one")
    refused(server, path, {**BODIES[path], field: ["rain", 7]}, f"$.{field}")
    refused(server, path, {**BODIES[path], field: ["rain", None]}, f"$.{field}")


RERANK = [path for path in BODIES if path not in ("/embed", "/score")]


@pytest.mark.parametrize("path", RERANK)
def test_documents_without_text(server: Server, path: str) -> None:
    field = list(BODIES[path])[1]
    for document in ({}, {"title": "x"}, {"text": 5}, {"image": "data:x"}):
        refused(server, path, {**BODIES[path], field: ["rain", document]}, f"$.{field}[1].text")


@pytest.mark.parametrize("path", RERANK)
def test_invalid_values_of_top_n(server: Server, path: str) -> None:
    for value in (-1, 1.5, "two", True):
        refused(server, path, {**BODIES[path], "top_k": value}, "$.top_k")
    refused(server, path, {**BODIES[path], "top_n": 1, "top_k": 2}, "top_n", "top_k")
    if path == "/vllm/rerank":
        assert server.post(path, {**BODIES[path], "top_n": 0}).status_code == 200  # 0 means all
    else:
        refused(server, path, {**BODIES[path], "top_n": 0}, "$.top_n")


# ── unknown fields: an error if the vendor refuses them, otherwise a warning ──


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields(server: Server, path: str) -> None:
    body = {**BODIES[path], "rerank_harder": True, "x\r\nX-Evil: 1\u00e9": 1}
    if path in ("/v2/rerank", "/v1/ranking"):
        refused(server, path, {**BODIES[path], "rerank_harder": True}, "rerank_harder", "known fields: ")
        return
    answer = server.post(path, body)
    assert answer.status_code == 200 and "x-evil" not in answer.headers
    warnings = json.loads(answer.headers["x-sie-warnings"])
    assert len(warnings) == 2 and "rerank_harder" in warnings[0]


def test_a_thousand_unknown_fields_make_a_short_header(server: Server) -> None:
    body = {**BODIES["/v1/rerank"], **{f"{i}" * 100: 1 for i in range(1000)}}
    answer = server.post("/v1/rerank", body)
    assert answer.status_code == 200 and len(answer.headers["x-sie-warnings"]) < 2000
    assert "990 more" in answer.headers["x-sie-warnings"]


def test_fields_that_have_no_effect_are_named(server: Server) -> None:
    for path, field in (("/v2/rerank", "priority"), ("/v1/rerank", "max_chunks_per_doc"), ("/score", "user")):
        answer = server.post(path, {**BODIES[path], field: 3})
        assert f"`{field}` was ignored" in answer.headers["x-sie-warnings"]
    meta = server.post("/v2/rerank", {**BODIES["/v2/rerank"], "priority": 3}).json()["meta"]
    assert "priority" in meta["warnings"][0]


def test_rank_fields(server: Server) -> None:
    documents = [{"title": "rain", "text": "falls"}, {"body": "stars"}]
    body = {"query": "rain", "documents": documents, "rank_fields": ["title", "text"]}
    refused(server, "/cohere/v1/rerank", body, "$.documents[1]", "rank_fields")
    refused(server, "/v2/rerank", {**body, "documents": ["rain"]}, "rank_fields")


# ── texts that are too long ──

UNCUT = {
    "/voyage/v1/rerank": {"truncation": False},
    "/tei/rerank": {"truncate": False},
    "/v1/ranking": {},
}


@pytest.mark.parametrize("path", UNCUT)
def test_texts_that_must_not_be_truncated_are_refused(server: Server, path: str) -> None:
    _query, field = BODIES[path]
    one: Any = {"text": LONG} if path == "/v1/ranking" else LONG
    body = {**BODIES[path], **UNCUT[path]}
    assert server.post(path, body).status_code == 200
    refused(server, path, {**body, field: ["rain", one]}, f"$.{field}[1]", "128 tokens")
    refused(server, path, {**body, "query": one}, "$.query", "128 tokens")


@pytest.mark.parametrize("path", RERANK)
def test_truncated_texts_are_reported(server: Server, path: str) -> None:
    field = list(BODIES[path])[1]
    body = {**BODIES[path], field: ["rain", LONG]} | ({"truncate": "END"} if path == "/v1/ranking" else {})
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert "1 of 2 texts" in answer.headers["x-sie-warnings"]


def test_texts_to_embed_that_must_not_be_truncated(server: Server) -> None:
    refused(server, "/embed", {"inputs": ["rain", LONG], "truncate": False}, "$.inputs[1]")
    answer = server.post("/embed", {"inputs": ["rain", LONG]})
    assert answer.status_code == 200 and "1 of 2 texts" in answer.headers["x-sie-warnings"]


def test_truncation_on_the_left_is_refused(server: Server) -> None:
    left = {"truncation_direction": "Left"}
    refused(server, "/tei/rerank", {**BODIES["/tei/rerank"], **left}, "$.truncation_direction")
    refused(server, "/embed", {**BODIES["/embed"], **left}, "$.truncation_direction")
    assert server.post("/tei/rerank", {**BODIES["/tei/rerank"], **left, "truncate": False}).status_code == 200


def test_other_values_that_are_refused(server: Server) -> None:
    refused(server, "/v1/ranking", {**BODIES["/v1/ranking"], "truncate": "START"}, "$.truncate")
    refused(server, "/v2/rerank", {**BODIES["/v2/rerank"], "max_tokens_per_doc": 0}, "$.max_tokens_per_doc")
    refused(server, "/embed", {"inputs": "rain", "normalize": False}, "$.normalize")
    refused(server, "/embed", {"inputs": "rain", "prompt_name": "poetry"}, "$.prompt_name")
    refused(server, "/embed", {"inputs": "rain", "dimensions": 4096}, "$.dimensions")
    refused(server, "/score", {"text_1": ["a", "b"], "text_2": ["a"] * 3}, "$.text_1", "2 queries for 3")
    too_many = {**BODIES["/score"], "truncate_prompt_tokens": 4096}
    refused(server, "/score", too_many, "$.truncate_prompt_tokens")


def test_a_model_that_cannot_score(server: Server) -> None:
    for path in RERANK:
        refused(server, path, {**BODIES[path], "model": "toy/encoder"}, "has no output 'score'")
    refused(server, "/embed", {"inputs": "rain", "model": PROBABILITY}, "dense")


# ── errors before the body is read ──


@pytest.mark.parametrize("path", [*BODIES, "/rerank"])
def test_without_a_key(guarded: Server, path: str) -> None:
    body = BODIES.get(path, {})
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = guarded.post(path, body, headers=headers)
        assert answer.status_code == 401 and "key" in message_of(path, answer)
        assert answer.headers["www-authenticate"] == "Bearer"
    if body:
        assert guarded.post(path, body, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize("path", [*BODIES, "/rerank"])
def test_too_large_and_the_wrong_method(server: Server, path: str) -> None:
    answer = server.post(path, b" " * (3 * 2**20))
    assert answer.status_code == 413 and "2 MiB" in message_of(path, answer)
    answer = server.get(path)
    assert answer.status_code == 405 and "GET" in message_of(path, answer)


def test_a_model_that_is_loading_sends_retry_after(tmp_path: Path, checkpoint_dirs: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for i in range(len(BODIES)):
        (models / f"m{i}").symlink_to(checkpoint_dirs / "bert")
    with processes.running(tmp_path, f"--models-dir={models}", "--load-wait-s=0") as slow:
        for i, (path, body) in enumerate(BODIES.items()):
            answer = slow.post(path, {**body, "model": f"m{i}"})
            assert answer.status_code == 503 and "loading" in message_of(path, answer), answer.text
            assert int(answer.headers["retry-after"]) >= 1


def test_the_clients_raise_their_own_errors(server: Server, guarded: Server) -> None:
    import litellm  # the import takes seconds, so it is limited to the worker of this test

    ask: dict[str, Any] = {"model": PROBABILITY, "query": QUERY, "documents": TEXTS}
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2("wrong", base_url=guarded.base_url).rerank(**ask)
    with pytest.raises(cohere.NotFoundError) as missing:
        cohere.ClientV2(KEY, base_url=server.base_url).rerank(**{**ask, "model": "rerank-v3.5"})
    assert "rerank-v3.5" in missing.value.body["message"]
    with pytest.raises(cohere.BadRequestError):
        cohere.Client(KEY, base_url=server.base_url).rerank(**{**ask, "documents": []})
    with pytest.raises(voyageai.error.AuthenticationError):
        voyageai.Client("wrong", base_url=f"{guarded.base_url}/v1").rerank(**ask)
    with pytest.raises(voyageai.error.InvalidRequestError, match="128 tokens"):
        client = voyageai.Client(KEY, base_url=f"{server.base_url}/v1")
        client.rerank(QUERY, [LONG], model=PROBABILITY, truncation=False)
    with pytest.raises(
        litellm.exceptions.APIConnectionError, match="does not know the API key"
    ):  # its name for it
        model = f"hosted_vllm/{PROBABILITY}"
        litellm.rerank(**{**ask, "model": model}, api_base=guarded.base_url, api_key="wrong")


def test_dialects_are_counted(server: Server) -> None:
    labels = {"route": "v1/ranking", "model": PROBABILITY, "status": "200"}
    before = server.metric("sie_requests_total", **labels)
    assert server.post("/v1/ranking", BODIES["/v1/ranking"]).status_code == 200
    assert server.metric("sie_requests_total", **labels) == before + 1
    server.post("/v2/rerank", {**BODIES["/v2/rerank"], "model": "no/such"})
    assert server.metric("sie_requests_total", route="v2/rerank", model="unknown", status="404") >= 1
