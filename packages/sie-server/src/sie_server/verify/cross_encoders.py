"""References of cross-encoders: sentence-transformers' `CrossEncoder`, and FlagEmbedding for BAAI's rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sie_server.engine.engine import Engine
from sie_server.verify.references import (
    Answers,
    Ask,
    library,
    limit_library,
    scores_of,
    version,
    without_padding,
)


def cross_encoder(directory: Path, engine: Engine) -> Ask:
    """Ask `CrossEncoder.predict`: its default prompt, its chat template, its truncation."""
    module = library("sentence_transformers")
    model = module.CrossEncoder(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    limit_library(model, engine)
    prompt = model.prompts.get(model.default_prompt_name)

    def ask(query: str, documents: list[str]) -> Answers:
        pairs = [(query, text) for text in documents]
        read = [model.preprocess([pair], prompt=prompt)["input_ids"][0].tolist() for pair in pairs]
        ids = [without_padding(one, engine) for one in read]
        logits = model.predict(
            pairs,
            batch_size=1,
            activation_fn=torch.nn.Identity(),
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        scores = scores_of(logits.reshape(len(pairs), -1), engine)
        return Answers(f"{version(module)} (CrossEncoder)", "logits", scores, ids)

    return ask


def sequence_classifier(directory: Path, engine: Engine) -> Ask:
    """Ask the model and tokenizer of transformers."""
    module, tokenizer, model = _classifier(directory)

    def ask(query: str, documents: list[str]) -> Answers:
        # in lists: a bare empty string would count as no second text
        pairs = [
            tokenizer([query], [text], truncation=True, max_length=engine.max_seq_length, return_tensors="pt")
            for text in documents
        ]
        scores = [score for pair in pairs for score in scores_of(model(**pair).logits, engine)]
        return Answers(version(module), "logits", scores, [pair.input_ids[0].tolist() for pair in pairs])

    return ask


def flag_embedding(directory: Path, engine: Engine) -> Ask:
    """Ask transformers with pairs that are cut as FlagEmbedding cuts them; FlagEmbedding itself if it is installed.

    The rule is `compute_score_single_gpu` in FlagEmbedding/inference/reranker/encoder_only/base.py: the query is cut to
    three quarters of the limit, then only the document.
    """
    module, tokenizer, model = _classifier(directory)
    limit, ranker = engine.max_seq_length, _flag_reranker(directory, engine.max_seq_length)
    form = tokenizer(["a"], ["b"])
    places, special = form.sequence_ids(0), form["input_ids"][0]
    types = form["token_type_ids"][0] if "token_type_ids" in form else [0] * len(places)
    first, second = places.index(0), places.index(1)
    middle_at, tail_at = first + places.count(0), second + places.count(1)

    def pair(query: str, document: str) -> dict[str, list[int]]:
        cut = {"add_special_tokens": False, "truncation": True}
        q = tokenizer(query, max_length=limit * 3 // 4, **cut)["input_ids"]
        d = tokenizer(document, max_length=limit, **cut)["input_ids"]
        room = limit - places.count(None) - len(q)
        d = d[len(d) - room :] if tokenizer.truncation_side == "left" and len(d) > room else d[:room]
        head, middle, tail = special[:first], special[middle_at:second], special[tail_at:]
        return {
            "input_ids": [*head, *q, *middle, *d, *tail],
            "token_type_ids": [types[0]] * (len(head) + len(q) + len(middle))
            + [types[second]] * (len(d) + len(tail)),
        }

    def ask(query: str, documents: list[str]) -> Answers:
        pairs = [pair(query, text) for text in documents]
        ids = [one["input_ids"] for one in pairs]
        if ranker:
            scores = ranker.compute_score([(query, text) for text in documents], normalize=False)
            return Answers("FlagEmbedding (FlagReranker)", "logits", list(map(float, scores)), ids)
        inputs = [{name: torch.tensor([value]) for name, value in one.items()} for one in pairs]
        scores = [score for one in inputs for score in scores_of(model(**one).logits, engine)]
        return Answers(f"FlagEmbedding's rule with {version(module)}", "logits", scores, ids)

    return ask


def _classifier(directory: Path) -> tuple[Any, Any, Any]:
    module = library("transformers")
    model = module.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    return module, module.AutoTokenizer.from_pretrained(directory), model.eval()


def _flag_reranker(directory: Path, limit: int) -> Any:
    """Return FlagEmbedding's reranker, None if it is not installed or does not fit the installed transformers."""
    try:
        from FlagEmbedding import FlagReranker  # type: ignore[import-not-found]
    except ImportError:
        return None
    return FlagReranker(str(directory), use_fp16=False, devices=["cpu"], max_length=limit)
