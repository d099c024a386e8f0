"""Listwise rerankers: all documents of a block are read in one sequence and compared with its query.

Each *block* of a request's documents is one prompt with the query before and after them. A control token that is read
out ends every document and the query. The query's token attends to all documents of its block, a document's token only
to the documents before it. A score therefore depends on the other documents and their order, and equal documents score
differently.

Prompt text, limits, and the forming and merging of blocks follow the reference (`modeling.py` of
jinaai/jina-reranker-v3 and v3.5, `rerank` and `format_docs_prompts_func`). The reference tokenises a prompt as one
string, so all text between two control tokens is tokenised as one string here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sie_server.engine.job import Floats, Job, ScoreTexts, Work
from sie_server.engine.kinds.base import Kind, Parts, Reader
from sie_server.engine.kinds.pending import Pending
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.reading import ALL
from sie_server.engine.text.slices import clip, either
from sie_server.engine.text.tokenizer import TextTokenizer, id_array
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, PackedBatch, Readout, Tokens
from sie_server.models.heads.listwise import Projector
from sie_server.models.spec import ListwiseSpec, ModelSpec, UnsupportedCheckpoint

DOCUMENT_END, QUERY_END = "<|embed_token|>", "<|rerank_token|>"  # read out
BEFORE = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>"
)
TASK = (
    "user\nI will provide you with {count} passages, each indicated by a numerical identifier. "
    "Rank the passages based on their relevance to query: {query}\n"
)
INSTRUCTION = "<instruct>\n{instruction}\n</instruct>\n"
PASSAGE, PASSAGE_END = '<passage id="{number}">\n{text}', "\n</passage>\n"
QUERY = "<query>\n{query}"
AFTER = "\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
MARK_END = ">"  # the last character of both, and nowhere else in them
MOST_DOCUMENTS = 125  # per block


class ListwiseTokenizer(TextTokenizer):
    """Tokenises prompts of a listwise reranker. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, token_types=False)
        self.marks = tuple(self._mark(token) for token in (DOCUMENT_END, QUERY_END))
        self._before, self._after = self.ids([BEFORE, AFTER])
        texts = sections("a b?", ["c\n", "d"], "e")
        whole = BEFORE + DOCUMENT_END.join(texts) + QUERY_END + AFTER
        expected = self.ids([whole])[0]
        # callers' texts are tokenised from here on; names of control tokens in them are plain text
        self._tokenizer.encode_special_tokens = True
        if not np.array_equal(self.prompt(texts), expected):
            raise UnsupportedCheckpoint(
                "this tokenizer tokenises the listwise prompt differently when it is split at its control tokens"
            )

    def _mark(self, token: str) -> int:
        found = self.token_id(token)
        if found is None:
            raise UnsupportedCheckpoint(
                f"tokenizer.json has no token {token!r}, which a listwise reranker reads out"
            )
        return found

    def ids(self, texts: list[str]) -> list[Ids]:
        """Return the ids of whole texts, without special tokens."""
        return self._encode(texts, ALL)[0]

    def prompt(self, texts: list[str]) -> Ids:
        """Return the ids of the prompt with these `sections`."""
        document_end, query_end = (id_array([mark]) for mark in self.marks)
        *documents, query = self.ids(texts)
        ended = [part for document in documents for part in (document, document_end)]
        return np.concatenate([self._before, *ended, query, query_end, self._after])

    def heads(self, texts: list[str], limit: int) -> tuple[list[str], list[int], list[bool]]:
        """Return each text's first `limit` tokens as text, their number, and whether the text has more.

        Names of read-out tokens are removed first. As in the reference, a text that reaches the limit is decoded from
        its tokens; if the limit splits the bytes of a character, that character becomes U+FFFD.
        """
        texts, over = clip(texts, limit)
        texts = [_without_marks(text) for text in texts]
        found, cut = self._encode(texts, limit)
        kept = [
            self.decode(ids.tolist()) if len(ids) >= limit else text
            for text, ids in zip(texts, found, strict=True)
        ]
        # decoding may produce the name of a read-out token again
        return [_without_marks(text) for text in kept], [len(ids) for ids in found], either(cut, over)


def _without_marks(text: str) -> str:
    """Remove the names of the read-out tokens until none is left, in one pass.

    A removal may join the halves of another name. Names do not overlap, so the order of removals does not matter.
    """
    if DOCUMENT_END not in text and QUERY_END not in text:
        return text
    kept: list[str] = []  # characters
    first, *rest = text.split(MARK_END)
    kept += first
    for part in rest:
        kept.append(MARK_END)
        for mark in (DOCUMENT_END, QUERY_END):
            if "".join(kept[-len(mark) :]) == mark:
                del kept[-len(mark) :]
                break
        kept += part
    return "".join(kept)


def sections(query: str, documents: list[str], instruction: str | None) -> list[str]:
    """Return the texts between the control tokens: one up to each document's end, and one up to the query's."""
    task = TASK.format(count=len(documents), query=query)
    if instruction:
        task += INSTRUCTION.format(instruction=instruction)
    passages = [PASSAGE.format(number=i, text=text) for i, text in enumerate(documents)]
    starts = [task] + [PASSAGE_END] * len(documents)
    return [start + rest for start, rest in zip(starts, [*passages, QUERY.format(query=query)], strict=True)]


def form_blocks(lengths: Sequence[int], room: int, longest: int) -> list[range]:
    """Return the blocks: at most 125 documents each; a block ends when at most `longest` tokens of `room` are left.

    Only the documents' own tokens, `lengths`, count. The prompt's words around each, about a dozen tokens, do not, so a
    prompt may exceed the room by as much; rotary positions allow that.
    """
    blocks, start, left = [], 0, room
    for end, length in enumerate(lengths, start=1):
        left -= length
        if end - start >= MOST_DOCUMENTS or left <= longest:
            blocks.append(range(start, end))
            start, left = end, room
    return [*blocks, range(start, len(lengths))] if start < len(lengths) else blocks


class ListwiseInput:
    """Builds jobs of blocks."""

    apart = False  # the documents of a block are one sequence

    def __init__(self, spec: ListwiseSpec, tokenizer: ListwiseTokenizer) -> None:
        self._spec, self._tokenizer = spec, tokenizer

    def score_job(self, texts: ScoreTexts) -> Job:
        """Build a job with one result per block; at most `texts.limit` tokens per document.

        Raises:
            InvalidInput: query and instruction leave no room for a document.
        """
        [query], [query_tokens], [query_cut] = self._tokenizer.heads([texts.query], self._spec.query_length)
        [instruction], [instruction_tokens], [too_long] = self._tokenizer.heads(
            [texts.instruction or ""], self._spec.block_length
        )
        room = self._spec.block_length - 2 * query_tokens - instruction_tokens
        fixed = len(self._tokenizer.prompt(sections("", [""], instruction))) - instruction_tokens
        if room <= fixed or too_long:
            where = "$.instruction" if instruction else "$.query.text"
            also = " and the instruction" if instruction else ""
            raise InvalidInput(
                f"the query (read twice){also} leave no room for a document in the "
                f"{self._spec.block_length} tokens of a prompt - at `{where}`"
            )
        limit = min(texts.limit, room - fixed)
        documents, lengths, cut = self._tokenizer.heads(texts.documents, limit)
        blocks = form_blocks(lengths, room, limit)
        job = Job(("score",), [None] * len(blocks), cut, query_cut, self._spec.query_length, blocks=blocks)
        for i, block in enumerate(blocks):
            ids = self._tokenizer.prompt(sections(query, documents[block.start : block.stop], instruction))
            job.work.append(Work(Tokens(ids, len(ids)), i, job))
        return job


class ListwiseReader(Reader):
    """Reads the vectors of a block, [documents + 1, width]: its documents' in order, then the query's."""

    readout: Readout = "all"

    def __init__(self, projector: Projector, marks: tuple[int, ...]) -> None:
        self._projector, self._marks = projector, marks

    def picks(self, work: Work) -> npt.NDArray[np.int64]:
        """See `Reader.picks`."""
        return marked(work.tokens.ids, self._marks)

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        picked = batch.picked
        assert picked is not None  # every block has its query
        vectors = self._projector(hidden[picked.rows])

        def finish(arrays: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(works)
            for packed, place in enumerate(batch.order):
                results[place] = arrays[0][picked.of(packed)].copy()
            return results

        return Pending([vectors], finish)


def marked(ids: Ids, marks: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the positions of the read-out tokens: the documents', then the query's."""
    return np.flatnonzero(np.isin(ids, marks))


def listwise_scores(blocks: Sequence[Floats]) -> list[float]:
    """Return the cosine of each document with the query, in fp64; `blocks` are the results of a job.

    The query's vector is the weighted average over the blocks. A block's weight is (1 + cosine) / 2 of its best
    document.
    """
    wide = [block.astype(np.float64) for block in blocks]
    weights = [((1 + _cosines(block[-1], block[:-1])) / 2).max() for block in wide]
    query = np.average([block[-1] for block in wide], axis=0, weights=weights)
    scores: list[float] = _cosines(query, np.concatenate([block[:-1] for block in wide])).tolist()
    return scores


def _cosines(query: npt.NDArray[np.float64], documents: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cosines: npt.NDArray[np.float64] = (
        documents @ query / (np.linalg.norm(query) * np.linalg.norm(documents, axis=1))
    )
    return cosines


def _tokenizer(directory: Path, spec: ModelSpec) -> ListwiseTokenizer:
    return ListwiseTokenizer(directory)


def _input(parts: Parts) -> ListwiseInput:
    return ListwiseInput(parts.head, parts.tokenizer)


def _reader(parts: Parts, weights: CheckpointWeights) -> ListwiseReader:
    return ListwiseReader(Projector(parts.spec.backbone.hidden_size, weights), parts.tokenizer.marks)


LISTWISE = Kind(input=_input, reader=_reader, tokenizer=_tokenizer)
