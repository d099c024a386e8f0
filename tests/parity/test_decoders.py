"""Causal rerankers: raw fp32 logits equal transformers' over each model card's own template code."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from checkpoints import random_text
from decoder_checkpoints import DECODERS, make_decoder
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job

LIMIT = 400
TOLERANCE = 1e-3
Reference = Callable[[Any, str, str, str | None, int], list[int]]


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def qwen3(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """The transformers snippet of the Qwen3-Reranker card."""
    prefix = plain(
        tokenizer,
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    )
    suffix = plain(tokenizer, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    instruction = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    middle = tokenizer(
        f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
        truncation="longest_first",
        max_length=limit - len(prefix) - len(suffix),
    )
    return prefix + list(middle["input_ids"]) + suffix


def mxbai(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """mxbai_rerank 0.1.6, MxbaiRerankV2.prepare_inputs; its max_length leaves out the fixed parts around."""
    prefix = plain(
        tokenizer,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
    )
    task = plain(
        tokenizer,
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
    )
    suffix, sep = plain(tokenizer, "<|im_end|>\n<|im_start|>assistant\n"), plain(tokenizer, "\n")
    inner = limit - len(prefix) - len(sep) - len(task) - len(suffix)
    prompt = f"query: {query}"
    if instruction:
        prompt = f"instruction: {instruction}\n{prompt}"
    first = plain(tokenizer, prompt)[: inner * 3 // 4]
    second = (sep + plain(tokenizer, f"document: {document}"))[: inner - len(first)]
    return prefix + first + second + sep + task + suffix


def gemma(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """FlagEmbedding 1.4.2, BaseLLMReranker; only the document gives way, the prompt never."""
    prompt = plain(
        tokenizer,
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    )
    sep = plain(tokenizer, "\n")
    first = [tokenizer.bos_token_id, *plain(tokenizer, f"A: {query}")]
    room = limit - len(first) - len(sep) - len(prompt)
    return first + (sep + plain(tokenizer, f"B: {document}"))[:room] + sep + prompt


def zerank(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """The chat form rendered as one string; the document is what gives way."""
    system = query
    if instruction:
        system = f"<query>{query}</query>\n<instruction>{instruction}</instruction>"
    head = plain(tokenizer, f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{document}")
    tail = plain(tokenizer, "<|im_end|>\n<|im_start|>assistant\n")
    whole = plain(
        tokenizer,
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n",
    )
    assert whole == head + tail
    return head[: limit - len(tail)] + tail


def ctxl(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """The card's prompt, with the tokenizer's own bos; documents are cut by us, so only uncut ones are compared."""
    instruction = f" {instruction}" if instruction else ""
    return list(
        tokenizer(
            "Check whether a given document contains information helpful to answer the query.\n"
            f"<Document> {document}\n<Query> {query}{instruction} ??"
        )["input_ids"]
    )


REFERENCES: dict[str, tuple[Reference, list[str]]] = {  # template → its ids, its answers
    "qwen3-reranker": (qwen3, ["yes", "no"]),
    "mxbai-rerank-v2": (mxbai, ["1", "0"]),
    "bge-reranker-gemma": (gemma, ["Yes"]),
    "zerank": (zerank, ["Yes"]),
    "ctxl-rerank-v2": (ctxl, []),
}


@dataclass
class Case:
    """One family's checkpoint, its documents, and what transformers says of them."""

    directory: Path
    template: str
    engine: Engine
    model: Any
    tokenizer: Any
    query: str
    documents: list[str]

    def reference_ids(self, query: str, document: str, instruction: str | None = None) -> list[int]:
        return REFERENCES[self.template][0](self.tokenizer, query, document, instruction, LIMIT)

    def reference(self, ids: list[int]) -> float:
        answers = [self.tokenizer.convert_tokens_to_ids(a) for a in REFERENCES[self.template][1]] or [0]
        with torch.inference_mode():
            last = self.model(torch.tensor([ids])).logits[0, -1]
        return float(last[answers[0]] - (last[answers[1]] if len(answers) > 1 else 0.0))

    def comparable(self, document: str) -> bool:
        return self.template != "ctxl-rerank-v2" or len(self.reference_ids(self.query, document)) <= LIMIT


@pytest.fixture(scope="module", params=sorted(DECODERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    directory = make_decoder(tmp_path_factory.mktemp(request.param), request.param)
    template = DECODERS[request.param][3]
    rng = random.Random(11)
    lengths = [0, 1, 2, 3, 5, *range(8, 60, 3), 90, 120, 150, 200, 300, 600]
    documents = [random_text(rng, n) for n in lengths] + [
        "  two  spaces ",
        "\n\nlines\n",
        "日本 ü?",
        "?",
        " ",
    ]
    yield Case(
        directory,
        template,
        Engine(directory, device="cpu", dtype="float32", template=template),
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(),
        PreTrainedTokenizerFast.from_pretrained(directory),
        "how do stars burn hydrogen?",
        documents,
    )


def ids_of(job: Job) -> list[list[int]]:
    before = job.prefix.ids.tolist() if job.prefix else []
    return in_order(job, [before + work.tokens.ids.tolist() for work in job.work])


def in_order(job: Job, results: list[Any]) -> list[Any]:
    ordered = sorted(zip(job.work, results, strict=True), key=lambda pair: pair[0].index)
    return [result for _, result in ordered]


def logits_of(
    engine: Engine, query: str, documents: list[str], instruction: str | None = None
) -> list[float]:
    job = engine.tokenize_score(query, documents, LIMIT, instruction)
    return in_order(job, engine.run(job.work))


@pytest.mark.parametrize("query", ["how do stars burn hydrogen?", "", "rain\n", "{document} and {query}"])
def test_token_ids_equal_the_reference(case: Case, query: str) -> None:
    job = case.engine.tokenize_score(query, case.documents, LIMIT)
    seen_cut = 0
    for ids, document, cut in zip(ids_of(job), case.documents, job.truncated, strict=True):
        assert len(ids) <= LIMIT
        if case.comparable(document):
            assert ids == case.reference_ids(query, document)
        seen_cut += cut
    assert 1 <= seen_cut < len(case.documents)
    assert job.input_tokens == sum(map(len, ids_of(job)))


def test_logits_equal_transformers(case: Case) -> None:
    job = case.engine.tokenize_score(case.query, case.documents, LIMIT)
    expected = np.array([case.reference(ids) for ids in ids_of(job)])
    ours = np.array(in_order(job, case.engine.run(job.work)))
    assert expected.std() > 0.05  # a checkpoint whose logits are all alike would prove nothing
    print(case.template, "max |Δ|", np.abs(ours - expected).max(), "std", expected.std())
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_alone_equals_batched_equals_permuted(case: Case) -> None:
    some = case.documents[::2]
    batched = logits_of(case.engine, case.query, some)
    alone = [logits_of(case.engine, case.query, [document])[0] for document in some]
    shuffled = list(range(len(some)))
    random.Random(3).shuffle(shuffled)
    permuted = logits_of(case.engine, case.query, [some[i] for i in shuffled])
    np.testing.assert_allclose(batched, alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(permuted, [batched[i] for i in shuffled], atol=TOLERANCE, rtol=0)


def test_sharing_the_prefix_changes_no_score(case: Case) -> None:
    apart = Engine(case.directory, device="cpu", dtype="float32", template=case.template, share_prefix=False)
    shared = case.engine.tokenize_score(case.query, case.documents, LIMIT)
    whole = apart.tokenize_score(case.query, case.documents, LIMIT)
    assert ids_of(shared) == ids_of(whole)
    assert whole.prefix is None
    np.testing.assert_allclose(
        logits_of(case.engine, case.query, case.documents),
        logits_of(apart, case.query, case.documents),
        atol=1e-4,
        rtol=0,
    )
    some = case.documents[:20]
    shared, whole = (engine.tokenize_score(case.query, some, LIMIT) for engine in (case.engine, apart))
    assert shared.prefix is not None
    assert shared.tokens < whole.tokens == shared.input_tokens == whole.input_tokens


def test_requests_mixed_over_several_batches_keep_their_scores(case: Case) -> None:
    """Works of three requests, interleaved, in batches that cut each request: prefixes are kept between them."""
    queries = [case.query, "rain", ""]
    jobs = [case.engine.tokenize_score(q, case.documents[:20], LIMIT) for q in queries]
    works = [work for trio in zip(*(job.work for job in jobs), strict=True) for work in trio]
    kept = None
    for start in range(0, len(works), 7):
        part = works[start : start + 7]
        for work, result in zip(part, case.engine.run(part), strict=True):
            work.job.put(work.index, result)
        first = jobs[0].prefix
        assert first is not None and len(first.layers) == 3
        assert kept is None or first.layers is kept  # computed once
        kept = first.layers
    for job, query in zip(jobs, queries, strict=True):
        np.testing.assert_allclose(
            job.results, logits_of(case.engine, query, case.documents[:20]), atol=TOLERANCE, rtol=0
        )


def test_an_instruction_is_read_where_the_model_takes_one(case: Case) -> None:
    if not case.engine.spec.takes_instruction:
        assert case.template == "bge-reranker-gemma"
        return
    told = "prefer short passages"
    job = case.engine.tokenize_score(case.query, case.documents[:12], LIMIT, told)
    expected = [case.reference_ids(case.query, d, told) for d in case.documents[:12]]
    assert ids_of(job) == expected
    ours = in_order(job, case.engine.run(job.work))
    np.testing.assert_allclose(ours, [case.reference(ids) for ids in expected], atol=TOLERANCE, rtol=0)
    assert not np.allclose(ours, logits_of(case.engine, case.query, case.documents[:12]), atol=0.01)


def test_bf16_ranks_as_fp32(case: Case) -> None:
    from scipy.stats import kendalltau

    coarse = Engine(case.directory, device="cpu", dtype="bfloat16", template=case.template)
    exact = logits_of(case.engine, case.query, case.documents)
    assert kendalltau(logits_of(coarse, case.query, case.documents), exact).statistic >= 0.85


def test_last_layer_short_cut_changes_nothing(case: Case) -> None:
    """The last layer computed for the read-out token only equals the same layer computed for all."""
    job = case.engine.tokenize_score(case.query, case.documents[:9], LIMIT)
    case.engine.run(job.work)  # computes the prefix
    batch = case.engine._pack([work.tokens for work in job.work], [work.job.prefix for work in job.work])
    with torch.inference_mode():
        short = case.engine._backbone.forward(batch, "last")
        whole = case.engine._backbone.forward(batch, "all")[batch.last_rows]
    torch.testing.assert_close(short, whole, atol=1e-4, rtol=0)
