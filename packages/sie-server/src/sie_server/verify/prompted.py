"""References of causal rerankers with a template: the model of transformers, and the template's own tokenisation.

The rules by which the texts of a template are cut are written here a second time, from their sources, and share nothing
with the engine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.engine import Engine
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from sie_server.models.spec import CausalSpec, PromptedClassifierSpec
from sie_server.templates import PLACEHOLDER, RerankTemplate
from sie_server.verify.references import (
    Answers,
    Ask,
    check_architecture,
    library,
    scores_of,
    version,
    without_padding,
)

# the templates whose library or model card says how texts are cut
RULES = {
    "mxbai-rerank-v2": "mxbai_rerank",
    "qwen3-reranker": "the model card",
    "bge-reranker-gemma": "FlagEmbedding",
}


def causal(directory: Path, engine: Engine) -> Ask:
    """Ask the whole model of transformers for the logits of the template's answers, or its classifier."""
    check_architecture(engine)
    module = library("transformers")
    tokenizer = module.AutoTokenizer.from_pretrained(directory)
    classifier = isinstance(engine.spec.head, PromptedClassifierSpec)
    kind = module.AutoModelForSequenceClassification if classifier else module.AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    assert isinstance(engine.spec.head, CausalSpec)  # selected by `judges`
    template = engine.spec.head.template
    ours = PromptTokenizer(directory, template)
    name = version(module)
    if template.name in RULES:
        name = f"{RULES[template.name]}'s rule with {name}"

    def ask(query: str, documents: list[str]) -> Answers:
        ids = [
            ours.start.tolist()
            + _filled(tokenizer, template, query, text, engine.max_seq_length - len(ours.start))
            for text in documents
        ]
        logits = [model(torch.tensor([one])).logits for one in ids]
        scores = [scores_of(one, engine)[0] if classifier else _difference(one, ours) for one in logits]
        return Answers(name, "logits", scores, [without_padding(one, engine) for one in ids])

    return ask


def _difference(logits: Tensor, ours: PromptTokenizer) -> float:
    """Return the logit of the positive answer minus that of the negative one, if there is one."""
    answer, *other = ours.answers
    row = logits[0, -1]
    return float(row[answer] - (row[other[0]] if other else 0.0))


def _filled(tokenizer: Any, template: RerankTemplate, query: str, document: str, limit: int) -> list[int]:
    """Return the ids of the pieces, at most `limit` where the template has a rule; the start is not among them."""
    texts = {"query": query, "document": document, "instruction": template.default_instruction or ""}
    pieces: list[list[int]] = []
    names: list[set[str]] = []
    for piece in template.pieces:
        names.append({name for name in PLACEHOLDER.findall(piece) if name != "instruction"})
        text = PLACEHOLDER.sub(lambda match: texts[match[1]], piece)
        pieces.append(tokenizer(text, add_special_tokens=False).input_ids)
    if template.name in RULES:
        _cut(pieces, names, template, limit)
    return [i for piece in pieces for i in piece]


def _cut(pieces: list[list[int]], names: list[set[str]], template: RerankTemplate, limit: int) -> None:
    at = [i for i, found in enumerate(names) if found]
    before, after = sum(map(len, pieces[: at[0]])), sum(map(len, pieces[at[-1] + 1 :]))
    if template.cut == "document":
        # the model card's example truncates the middle string to the limit without prefix and suffix
        del pieces[at[0]][limit - before - after :]
        return
    query, document = at
    between = sum(map(len, pieces[query + 1 : document]))
    if template.cut == "flag-embedding":
        # max_length M; query and document are cut to M + the tokens after them, which then follow once more
        most = limit + 1 - 2 * after  # the start is one token
        del pieces[query][most * 3 // 4 :]
        del pieces[document][most:]
        del pieces[document][most + after - 1 - len(pieces[query]) - between :]
        return
    most = limit - before - after  # max_length of mxbai_rerank
    del pieces[query][most * 3 // 4 :]
    del pieces[document][most - len(pieces[query]) - between :]
