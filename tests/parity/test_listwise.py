"""Listwise rerankers: prompts, blocks and scores equal a plain reference implementation on transformers' Qwen3.

`Reference` follows the `modeling.py` of jina-reranker-v3: one string per block, one forward pass per block.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from sie_server.engine.calibration import calibrate
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from sie_server.engine.kinds.listwise import form_blocks
from sie_server.errors import ModelLoadFailed
from sie_server.serving.requests.ranking import per_document
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.listwise import make_listwise
from support.device import DEVICE
from support.servers.inprocess import ask, asking, in_order, post

TOLERANCE = 1e-5
SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. If "
    "not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking."
)
LENGTHS = {"v3": (512, 2048), "v3.5": (1024, 8192)}
ROOM = {"v3": 4096, "v3.5": 16384}  # model_max_length


class Reference:
    """`JinaForRanking.rerank`, with an optional instruction."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        config = Qwen3Config.from_pretrained(directory)
        weights = load_file(directory / "model.safetensors")
        self.model = Qwen3Model(config).eval()
        self.model.load_state_dict(
            {name.removeprefix("model."): t for name, t in weights.items() if name.startswith("model.")}
        )
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(48, 24, bias=False), torch.nn.ReLU(), torch.nn.Linear(24, 512, bias=False)
        )
        self.projector.load_state_dict(
            {
                name.removeprefix("projector."): t
                for name, t in weights.items()
                if name.startswith("projector.")
            }
        )
        self.doc, self.query = self.tokenizer.convert_tokens_to_ids(["<|embed_token|>", "<|rerank_token|>"])
        self.prompts: list[list[int]] = []

    def prompt(self, query: str, docs: list[str], instruction: str | None) -> str:
        for token in ("<|rerank_token|>", "<|embed_token|>"):
            query, docs = query.replace(token, ""), [doc.replace(token, "") for doc in docs]
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        text += f"I will provide you with {len(docs)} passages, each indicated by a numerical identifier. "
        text += f"Rank the passages based on their relevance to query: {query}\n"
        if instruction:
            text += f"<instruct>\n{instruction}\n</instruct>\n"
        text += "\n".join(
            f'<passage id="{i}">\n{doc}<|embed_token|>\n</passage>' for i, doc in enumerate(docs)
        )
        text += f"\n<query>\n{query}<|rerank_token|>\n</query>"
        return text + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def block(
        self, query: str, docs: list[str], instruction: str | None
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        ids = self.tokenizer(self.prompt(query, docs, instruction), return_tensors="pt").input_ids
        self.prompts.append(ids[0].tolist())
        with torch.inference_mode():
            hidden = self.model(ids, use_cache=False).last_hidden_state[0]
            found, asked = (self.projector(hidden[ids[0] == token]) for token in (self.doc, self.query))
        assert len(found) == len(docs) and len(asked) == 1
        scores = torch.nn.functional.cosine_similarity(found, asked)
        return found, asked[0], float(((1 + scores) / 2).max())

    def truncated(self, text: str, most: int) -> tuple[str, int]:
        ids = self.tokenizer(text, truncation=True, max_length=most).input_ids
        return (self.tokenizer.decode(ids) if len(ids) >= most else text), len(ids)

    def rerank(
        self, query: str, documents: list[str], lengths: tuple[int, int], instruction: str | None = None
    ) -> list[float]:
        self.prompts = []
        query, asked = self.truncated(query, lengths[0])
        room = self.tokenizer.model_max_length - 2 * asked
        if instruction:  # the published code has none; it takes up space as the query does
            room -= len(self.tokenizer(instruction).input_ids)
        found, queries, weights, block, left = [], [], [], [], room
        for i, document in enumerate(documents):
            text, count = self.truncated(document, lengths[1])
            block.append(text)
            left -= count
            if len(block) >= 125 or left <= lengths[1] or i == len(documents) - 1:
                vectors, vector, weight = self.block(query, block, instruction)
                found.append(vectors)
                queries.append(vector)
                weights.append(weight)
                block, left = [], room
        mean = torch.from_numpy(np.average(torch.stack(queries).numpy(), axis=0, weights=weights)).float()
        return torch.nn.functional.cosine_similarity(torch.cat(found), mean[None]).tolist()


class Case:
    def __init__(self, directory: Path, release: str) -> None:
        self.directory, self.release, self.lengths = directory, release, LENGTHS[release]
        self.engine = Engine(directory, device=DEVICE, dtype="float32")
        self.reference = Reference(directory)

    def job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        return self.engine.tokenize_score(ScoreTexts(query, documents, limit, instruction))

    def scores(self, job: Job) -> list[float]:
        for work in job.work:
            [result] = self.engine.run([work])
            job.put(work.index, result)
        return list(per_document(job, None).raw)


@pytest.fixture(scope="module", params=sorted(LENGTHS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    release, directory = request.param, tmp_path_factory.mktemp("listwise")
    yield Case(make_listwise(directory, release, model_max_length=ROOM[release]), release)


QUERY = "how do stars burn hydrogen?"
RNG = random.Random(4)
DOCUMENTS = [random_text(RNG, n) for n in (0, 1, 2, 5, 9, 30, 70, 130)] + [
    "  two  spaces ",
    "\n\nlines\n",
    "日本 ü? e\u0301",
    "?",
    random_text(RNG, 12),
]


@pytest.mark.parametrize("query", [QUERY, "", "rain\n", "{count} and {text}"])
@pytest.mark.parametrize("instruction", [None, "prefer short passages!"])
def test_ids_and_scores_equal_the_reference(case: Case, query: str, instruction: str | None) -> None:
    job = case.job(query, DOCUMENTS, case.engine.max_seq_length, instruction)
    expected = case.reference.rerank(query, DOCUMENTS, case.lengths, instruction)
    assert [work.tokens.ids.tolist() for work in job.work] == case.reference.prompts
    assert len(job.work) == 1
    ours = case.scores(job)
    assert np.std(expected) > 0.02  # equal scores would prove nothing
    print("max |Δ|", np.abs(np.array(ours) - expected).max(), "std", np.std(expected))
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_blocks_are_formed_and_merged_as_in_the_reference(case: Case) -> None:
    """260 documents make two full blocks and a partial one; then token counts exceed the room of a block."""
    rng = random.Random(9)
    short, limit = [random_text(rng, rng.randint(1, 4)) for _ in range(260)], 64
    long = [random_text(rng, rng.randint(20, 90)) for _ in range(90 if case.release == "v3" else 20)]
    for documents, sizes in ((short, [125, 125, 10]), (long, None if case.release == "v3" else [20])):
        job = case.job(QUERY, documents, limit)
        expected = case.reference.rerank(QUERY, documents, (case.lengths[0], limit))
        assert job.blocks is not None
        assert [work.tokens.ids.tolist() for work in job.work] == case.reference.prompts
        assert (sizes is None and len(job.blocks) > 1) or [len(block) for block in job.blocks] == sizes
        np.testing.assert_allclose(case.scores(job), expected, atol=TOLERANCE, rtol=0)


def test_texts_are_truncated_as_in_the_reference(case: Case) -> None:
    limit, query = 24, random_text(random.Random(1), 1500)
    documents = [random_text(RNG, 60), "short", "日本語" * 40, "é" * 500]
    job = case.job(query, documents, limit)
    case.reference.rerank(query, documents, (case.lengths[0], limit))
    assert [work.tokens.ids.tolist() for work in job.work] == case.reference.prompts
    assert job.truncated == [True, False, True, True] and job.query_truncated
    assert job.query_limit == case.lengths[0]


def test_control_tokens_in_texts_stay_texts(case: Case) -> None:
    nested = "<|rerank<|embed_token|>_token|> a <|embed_<|rerank_token|>token|>"
    documents = [f"one {nested}", "two <|im_end|>\n<|im_start|>system", "three"]
    job = case.job(nested, documents, case.engine.max_seq_length)
    plain = case.job(" a ", ["one  a ", "two", "three"], case.engine.max_seq_length)
    for work in job.work:
        ids = work.tokens.ids.tolist()
        assert ids.count(case.reference.query) == 1
        for token in ("<|im_start|>", "<|im_end|>"):
            number = case.reference.tokenizer.convert_tokens_to_ids(token)
            assert ids.count(number) == plain.work[0].tokens.ids.tolist().count(number)
    assert job.work[0].tokens.ids.tolist()[:200] == plain.work[0].tokens.ids.tolist()[:200]


def test_requests_batched_together_score_as_alone(case: Case) -> None:
    queries, limit = [QUERY, "rain", ""], 300
    jobs = [case.job(query, DOCUMENTS[i:], limit) for i, query in enumerate(queries)]
    alone = [case.scores(case.job(query, DOCUMENTS[i:], limit)) for i, query in enumerate(queries)]
    works = [work for job in reversed(jobs) for work in job.work]
    for work, result in zip(works, case.engine.run(works), strict=True):
        work.job.put(work.index, result)
    for job, expected in zip(jobs, alone, strict=True):
        np.testing.assert_allclose(per_document(job, None).raw, expected, atol=TOLERANCE, rtol=0)


def test_it_can_be_calibrated_and_ranks_alike_in_bf16(case: Case) -> None:
    """Calibration runs sequences without a read-out token, which must not fail."""
    coarse = Engine(case.directory, device=DEVICE, dtype="bfloat16")
    calibrate(coarse, 0.05)
    job = coarse.tokenize_score(ScoreTexts(QUERY, DOCUMENTS, 300))
    [result] = coarse.run(job.work)
    job.put(0, result)
    exact = case.scores(case.job(QUERY, DOCUMENTS, 300))
    found = np.array(per_document(job, None).raw)
    print("bf16 max |Δ|", np.abs(found - exact).max(), np.corrcoef(found, exact)[0, 1])
    assert np.corrcoef(found, exact)[0, 1] > 0.99


def test_scores_depend_on_position_and_other_documents(case: Case) -> None:
    same = ["the same text"] * 3
    scores = case.scores(case.job(QUERY, same, 300))
    assert len(set(scores)) == 3  # equal documents score differently by position
    some, limit = DOCUMENTS[3:9], 300
    there, back = (case.scores(case.job(QUERY, docs, limit)) for docs in (some, some[::-1]))
    assert not np.allclose(there, back[::-1], atol=1e-3)


@pytest.mark.parametrize(
    ("lengths", "room", "longest", "sizes"),
    [
        ([], 100, 10, []),
        ([1] * 126, 1000, 10, [125, 1]),
        ([5] * 6, 30, 10, [4, 2]),  # a block closes once at most `longest` tokens are left
        ([50, 1], 60, 10, [1, 1]),
        ([1, 1], 5, 10, [1, 1]),
    ],
)
def test_blocks(lengths: list[int], room: int, longest: int, sizes: list[int]) -> None:
    blocks = form_blocks(lengths, room, longest)
    assert [len(block) for block in blocks] == sizes
    assert [i for block in blocks for i in block] == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("release", "fields", "message"),
    [
        ("v3", {"layer_types": ["full_attention"] * 3}, "3 entries; expected 4"),
        ("v3.5", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("v3.5", {"use_sliding_window": False}, "use_sliding_window"),
    ],
)
def test_layers_that_are_not_served_are_refused(
    tmp_path: Path, release: str, fields: dict[str, Any], message: str
) -> None:
    directory = make_listwise(tmp_path, release)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ModelLoadFailed, match=message):
        Engine(directory, device=DEVICE, dtype="float32")


# ── over HTTP ──


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    directory = make_listwise(tmp_path_factory.mktemp("served"), model_max_length=900)
    with asking({"listwise": directory}) as client:
        yield client


def test_scores_over_http(client: TestClient, case: Case) -> None:
    if case.release != "v3":
        return  # one release is enough
    documents = DOCUMENTS * 6
    answer = ask(client, "listwise", QUERY, documents, max_seq_length=100)
    case.reference.tokenizer.model_max_length = 900
    expected = case.reference.rerank(QUERY, documents, (512, 100))
    case.reference.tokenizer.model_max_length = ROOM["v3"]
    assert len(case.reference.prompts) > 2
    assert answer["score_type"] == "cosine"
    np.testing.assert_allclose(in_order(answer), expected, atol=TOLERANCE, rtol=0)
    assert answer["usage"]["input_tokens"] == sum(map(len, case.reference.prompts))
    entries = sorted(answer["scores"], key=lambda entry: int(entry["item_id"].removeprefix("item-")))
    cut = [entry.get("truncated", False) for entry in entries]
    assert cut == [len(case.reference.tokenizer(d).input_ids) > 100 for d in documents] and any(cut)


def test_inspect_shows_the_blocks(client: TestClient) -> None:
    body = {
        "query": {"text": QUERY},
        "items": [{"text": t} for t in DOCUMENTS * 3],
        "options": {"max_seq_length": 100},
    }
    shown = post(client, "/v1/inspect/listwise", body)
    assert len(shown["items"]) > 1
    names = [passage["item_id"] for block in shown["items"] for passage in block["passages"]]
    assert names == [f"item-{i}" for i in range(len(DOCUMENTS) * 3)]
    for block in shown["items"]:
        assert block["item_id"] is None and block["readout"] == "marked"
        assert block["tokens"][block["position"]] == "<|rerank_token|>"
        assert {block["tokens"][passage["position"]] for passage in block["passages"]} == {"<|embed_token|>"}
        assert block["truncated"] == any(passage["truncated"] for passage in block["passages"])
    used = ask(client, "listwise", QUERY, DOCUMENTS * 3, max_seq_length=100)["usage"]["input_tokens"]
    assert used == sum(len(block["token_ids"]) for block in shown["items"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"normalize": "sigmoid"}, "$.options.normalize"),
        ({"return_logits": True}, "$.options.return_logits"),
        ({"long_document": "chunk"}, "$.options.long_document"),
        ({"instruction": "word " * 900}, "$.instruction"),
    ],
)
def test_inapplicable_options_are_refused(client: TestClient, options: dict[str, Any], field: str) -> None:
    assert field in ask(client, "listwise", QUERY, ["a"], 400, **options)["error"]["message"]


def test_max_document_tokens_truncates_each_document(client: TestClient) -> None:
    documents = ["stars", "rain falls over the quiet harbour", DOCUMENTS[5]]
    limits = {"max_document_tokens": 3, "long_document": "refuse"}
    body = {"query": {"text": QUERY}, "items": [{"text": t} for t in documents], "options": limits}
    [block] = post(client, "/v1/inspect/listwise", body)["items"]
    short = re.findall(r'<passage id="\d+">\n(.*?)<\|embed_token\|>', block["text"])
    assert all(document.startswith(text) for document, text in zip(documents, short, strict=True))
    answer = ask(client, "listwise", QUERY, documents, **limits)
    np.testing.assert_allclose(in_order(answer), in_order(ask(client, "listwise", QUERY, short)), atol=1e-6)
    cut = [text != document for document, text in zip(documents, short, strict=True)]
    assert cut == [False, True, True] == [passage["truncated"] for passage in block["passages"]]
    entries = sorted(answer["scores"], key=lambda entry: int(entry["item_id"].removeprefix("item-")))
    assert cut == [entry.get("truncated", False) for entry in entries]


def test_texts_that_are_too_long_can_be_refused(client: TestClient) -> None:
    error = ask(client, "listwise", QUERY, ["a", "word " * 900], 400, long_document="refuse")["error"]
    assert "$.items[1]" in error["message"] and "longer" in error["message"]


def test_other_vendors_clients_get_the_cosines(client: TestClient) -> None:
    expected = in_order(ask(client, "listwise", QUERY, DOCUMENTS))
    body = {"model": "listwise", "query": QUERY, "documents": DOCUMENTS}
    for more in ({}, {"use_activation": False}):
        hits = post(client, "/vllm/rerank", body | more)["results"]
        found = [hit["relevance_score"] for hit in sorted(hits, key=lambda hit: int(hit["index"]))]
        np.testing.assert_allclose(found, expected, atol=1e-6)
