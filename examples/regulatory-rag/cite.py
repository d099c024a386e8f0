"""Answer questions from a long regulation, with citations that a program can check.

    pip install ./packages/sie-sdk ./packages/sie-server
    sie-server serve &
    python examples/regulatory-rag/cite.py "How soon must a fire be reported?"

The candidates are whole articles of any length. The server reads each article in overlapping windows and returns
the best one (`long_document: chunk`). A second call ranks the sentences of these windows. Every citation is a span of
characters of a file, and the prompt for a language model quotes only such spans.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sie_sdk import Item, ScoreEntry, SIEClient

REGULATION = Path(__file__).parent / "regulation"
RERANKER = "sie/mini-en"
WINDOWS = {"long_document": "chunk", "max_seq_length": 96, "chunk_overlap": 32}  # tokens
ARTICLES = 4  # number of articles whose best windows are searched for sentences
PROMPT = """\
Answer the question from the quotations alone and cite them by their numbers. If they do not answer it, say so.

{quotations}

Question: {question}"""


class Span(NamedTuple):
    """Characters [start, end) of a file, and the heading of their article."""

    file: str
    start: int
    end: int
    heading: str


def read_files() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(REGULATION.glob("*.txt"))}


def articles(file: str, text: str) -> list[Span]:
    """Split a text at its headings `Article N. Title`."""
    found = list(re.finditer(r"^Article .*$", text, re.MULTILINE))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [Span(file, match.start(), end, match[0]) for match, end in zip(found, ends, strict=True)]


def sentences(text: str, window: Span) -> Iterator[Span]:
    """Yield the whole sentences that overlap the window."""
    for match in re.finditer(r"\S[^\n]*?\w{3}[.:;](?=\s|$)", text):
        start, end = match.span()
        if start < window.end and end > window.start and not match[0].startswith("Article "):
            yield Span(window.file, start, end, window.heading)


def rank(client: SIEClient, question: str, texts: list[str], options: dict[str, Any]) -> list[ScoreEntry]:
    """Score the texts and return their entries, most relevant first. An entry's id is the position of its text."""
    items = [Item(id=str(position), text=text) for position, text in enumerate(texts)]
    return client.score(RERANKER, Item(text=question), items, options=options)["scores"]


def best_windows(client: SIEClient, question: str, files: dict[str, str]) -> list[Span]:
    """Return the best window of each of the most relevant articles."""
    candidates = [article for file, text in files.items() for article in articles(file, text)]
    entries = rank(client, question, [files[one.file][one.start : one.end] for one in candidates], WINDOWS)
    windows = []
    for entry in entries[:ARTICLES]:
        article = candidates[int(str(entry["item_id"]))]
        whole = {"start": 0, "end": article.end - article.start}
        chunk = entry.get("chunk") or whole  # a short article has no windows
        start, end = article.start + chunk["start"], article.start + chunk["end"]
        windows.append(article._replace(start=start, end=end))
    return windows


def cite(client: SIEClient, question: str, files: dict[str, str], count: int) -> list[tuple[Span, float]]:
    """Return the most relevant sentences of the best windows, with their scores."""
    spans = [
        one
        for window in best_windows(client, question, files)
        for one in sentences(files[window.file], window)
    ]
    texts = [f"{one.heading}. {files[one.file][one.start : one.end]}" for one in spans]
    entries = rank(client, question, texts, {"top_n": count})
    return [(spans[int(str(entry["item_id"]))], entry["score"]) for entry in entries]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Passages of a regulation that answer a question, with citations."
    )
    parser.add_argument("question")
    parser.add_argument("--url", help="default: SIE_BASE_URL, else http://localhost:8080")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--prompt", action="store_true", help="print a prompt for a language model instead")
    args = parser.parse_args()
    files = read_files()
    with SIEClient(args.url) as client:
        found = cite(client, args.question, files, args.top)
    quotations = []
    for number, (one, score) in enumerate(found, 1):
        quotation = f"“{files[one.file][one.start : one.end]}”"
        quotations.append(
            f"[{number}] {one.heading} ({one.file}, characters {one.start}–{one.end}): {quotation}"
        )
        if not args.prompt:
            print(f"{score:.3f}  {quotations[-1]}")
    if args.prompt:
        print(PROMPT.format(quotations="\n".join(quotations), question=args.question))


if __name__ == "__main__":
    main()
