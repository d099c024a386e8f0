"""References for causal rerankers: the template code of each model card, and the logits of transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import DECODERS, make_decoder
from support.device import DEVICE

LIMIT = 400
TOLERANCE = 1e-3
Reference = Callable[[Any, str, str, str | None, int], list[int]]


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def qwen3(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """Return the ids of the transformers snippet of the Qwen3-Reranker card."""
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
    """Return the ids of mxbai_rerank 0.1.6, MxbaiRerankV2.prepare_inputs; its max_length excludes the fixed parts."""
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
    """Return the ids of FlagEmbedding 1.4.2, BaseLLMReranker.compute_score_single_gpu.

    Its `max_length` M leaves room for twice the tokens after the document. The query keeps 3/4 of M and the document M.
    """
    prompt = plain(
        tokenizer,
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    )
    sep = plain(tokenizer, "\n")
    after = len(sep) + len(prompt)
    most = limit - 2 * after
    first = [tokenizer.bos_token_id, *plain(tokenizer, f"A: {query}")[: most * 3 // 4]]
    second = sep + plain(tokenizer, f"B: {document}")[:most]
    return first + second[: most + after - len(first)] + sep + prompt


def zerank(tokenizer: Any, query: str, document: str, instruction: str | None, limit: int) -> list[int]:
    """Return the ids of the chat form rendered as one string; only the document is truncated."""
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
    """Return the ids of the card's prompt with the tokenizer's bos; the card defines no truncation."""
    instruction = f" {instruction}" if instruction else ""
    return list(
        tokenizer(
            "Check whether a given document contains information helpful to answer the query.\n"
            f"<Document> {document}\n<Query> {query}{instruction} ??"
        )["input_ids"]
    )


REFERENCES: dict[str, tuple[Reference, list[str]]] = {  # template → function for its ids, answer tokens
    "qwen3-reranker": (qwen3, ["yes", "no"]),
    "mxbai-rerank-v2": (mxbai, ["1", "0"]),
    "bge-reranker-gemma": (gemma, ["Yes"]),
    "zerank": (zerank, ["Yes"]),
    "ctxl-rerank-v2": (ctxl, []),
}


@dataclass
class Case:
    """One family's checkpoint, documents, and the reference."""

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


def make_case(directory: Path, family: str) -> Case:
    """Write a random checkpoint of `family` to `directory`, and load it in the engine and in transformers."""
    make_decoder(directory, family)
    template = DECODERS[family][3]
    rng = random.Random(11)
    lengths = [0, 1, 2, 3, 5, *range(8, 60, 3), 90, 120, 150, 200, 300, 600]
    documents = [random_text(rng, n) for n in lengths] + [
        "  two  spaces ",
        "\n\nlines\n",
        "日本 ü?",
        "?",
        " ",
    ]
    return Case(
        directory,
        template,
        Engine(directory, device=DEVICE, dtype="float32", template=template),
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
