"""ColBERT: markers and mask expansion on the way in, token vectors and MaxSim scores on the way out.

Checkpoints are read exactly as PyLate 1.6 reads them (https://github.com/lightonai/pylate,
`pylate/models/colbert.py`); Stanford's code produces the same ids. Texts are stripped. The marker follows the first
token and counts towards the limit. Mask tokens of token type 0 expand a query to its length, and all their vectors
are matched. If a checkpoint does not attend to the expansion, mask tokens attend to the real tokens, and no token
attends to a mask token, not even to itself. The encoder reads every token of a document; those in the skip list are
not matched. A checkpoint in the layout of sentence-transformers 6 has prompts instead of markers; a prompt is
tokenised together with the unstripped text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.engine.document_cache import CachedDocument, ModelDocuments
from sie_server.engine.job import QUERY, Chunking, Floats, Job, ScoreTexts, Work, build_job
from sie_server.engine.kinds.base import Kind, Parts, Reader
from sie_server.engine.kinds.pending import Outputs, Pending
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.chunks import Chunks, most_tokens, split
from sie_server.engine.text.jobs import document_job, window_job
from sie_server.engine.text.slices import clip, either
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.batch import PackedBatch, Readout, Tokens
from sie_server.models.heads.late_interaction import (
    DocumentVectors,
    QueryVectors,
    TokenMatches,
    TokenProjection,
    colbert_scores,
)
from sie_server.models.spec import LateInteractionSpec, ModelSpec, UnsupportedCheckpoint, read_json


class ColbertInput:
    """Builds jobs of queries and documents, each in its own form."""

    apart = True

    def __init__(
        self,
        spec: LateInteractionSpec,
        tokenizer: TextTokenizer,
        directory: Path,
        cache: ModelDocuments | None,
    ) -> None:
        self._spec, self._tokenizer, self._cache = spec, tokenizer, cache
        self._query_marker = _marker(tokenizer, spec.query_marker)
        self._document_marker = _marker(tokenizer, spec.document_marker)
        self._filler = _filler(tokenizer, directory, spec.expansion_token) if spec.expand_to else 0

    def queries(self, texts: list[str]) -> tuple[list[Tokens], list[bool]]:
        """Tokenise queries, expand them if the checkpoint does, and return which were truncated."""
        spec = self._spec
        texts, over = self._stripped(texts, spec.query_length)
        plain, cut = self._tokenizer.singles(texts, spec.query_length, self._query_marker, spec.query_prompt)
        cut = either(cut, over)
        if not spec.expand_to:
            return plain, cut
        tokens = []
        for query in plain:
            length = max(len(query), spec.expand_to)
            ids = np.concatenate((query.ids, np.full(length - len(query), self._filler, np.int32)))
            tokens.append(Tokens(ids, length, None if spec.attend_to_expansion else len(query)))
        return tokens, cut

    def documents(self, texts: list[str], limit: int) -> tuple[list[Tokens], list[bool]]:
        """Tokenise documents to at most `limit` tokens, and return which were truncated."""
        texts, over = self._stripped(texts, limit)
        tokens, cut = self._tokenizer.singles(texts, limit, self._document_marker, self._spec.document_prompt)
        return tokens, either(cut, over)

    def _stripped(self, texts: list[str], limit: int) -> tuple[list[str], list[bool]]:
        """Strip the part of each text that is read for `limit` tokens, and return which texts have more."""
        texts, over = clip(texts, limit)
        return [text.strip() for text in texts] if self._spec.strip else texts, over

    def encode_job(
        self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool, prompt: str = ""
    ) -> Job:
        """See `EncodeInput.encode_job`."""
        if prompt:
            # a checkpoint may strip the prompt together with the text
            read = self._spec.query_length if is_query else limit
            texts = [prompt + text for text in clip(texts, read)[0]]
        job = build_job(outputs, *(self.queries(texts) if is_query else self.documents(texts, limit)))
        job.is_query = is_query
        return job

    def score_job(self, texts: ScoreTexts) -> Job:
        """See `TextInput.score_job`; documents with cached vectors are not read again."""
        job = document_job(texts.documents, texts.limit, self.documents, self._cache)
        self._add_query(job, texts.query)
        return job

    def chunk_job(self, texts: ScoreTexts, chunking: Chunking) -> Job:
        """See `ChunkInput.chunk_job`; each window has the marker and the prompt."""
        marker, tokenizer = self._document_marker, self._tokenizer
        room = tokenizer.single_room(texts.limit) - (0 if marker is None else 1)
        documents, over = clip(texts.documents, most_tokens(chunking, room))
        stripped = [text.strip() for text in documents] if self._spec.strip else documents
        parts = split(tokenizer, stripped, room, chunking, self._spec.document_prompt)
        if self._spec.strip:
            parts = _unstripped(parts, documents, over)
        job = window_job(parts, lambda ids: tokenizer.single(ids, marker), self._cache)
        self._add_query(job, texts.query)
        return job

    def vectors_job(self, query: str | Floats, documents: list[str] | list[Floats], limit: int) -> Job:
        """Build a score job in which the query, the documents or both are token vectors from the caller."""
        texts = [d for d in documents if isinstance(d, str)]
        given = [d for d in documents if not isinstance(d, str)]
        if given:
            job = Job(("score",), [None] * len(given), [False] * len(given))
        else:
            job = document_job(texts, limit, self.documents, self._cache)
        job.known += [(i, DocumentVectors(torch.from_numpy(d))) for i, d in enumerate(given)]
        if isinstance(query, str):
            self._add_query(job, query)
        else:
            job.query_vectors = QueryVectors(torch.from_numpy(query), None, None)
        return job

    def _add_query(self, job: Job, query: str) -> None:
        [tokens], [job.query_truncated] = self.queries([query])
        job.query_limit = self._spec.query_length
        job.work.insert(0, Work(tokens, QUERY, job))


def _marker(tokenizer: TextTokenizer, text: str) -> int | None:
    """Return the marker's id, None for no marker.

    PyLate would add a missing token, with an untrained embedding.

    Raises:
        UnsupportedCheckpoint: the vocabulary lacks the marker.
    """
    if not text:
        return None
    number = tokenizer.token_id(text)
    if number is None:
        raise UnsupportedCheckpoint(f"tokenizer.json has no token {text!r}, the checkpoint's marker")
    return number


def _unstripped(parts: Chunks, documents: list[str], over: list[bool]) -> Chunks:
    """Convert spans in the stripped texts to spans in the original ones; `over` are texts that were cut before."""
    before = [len(text) - len(text.lstrip()) if text.strip() else 0 for text in documents]
    chunks = [
        replace(c, start=c.start + before[c.document], end=c.end + before[c.document]) for c in parts.chunks
    ]
    return replace(
        parts, chunks=chunks, cut=[cut or over[c.document] for cut, c in zip(parts.cut, chunks, strict=True)]
    )


def _filler(tokenizer: TextTokenizer, directory: Path, named: str | None) -> int:
    """Return the id of the token that expands queries.

    That is the token the checkpoint names, else the mask token, else (for decoders) the end-of-sequence token.

    Raises:
        UnsupportedCheckpoint: no such token, or the tokenizer pads on the left.
    """
    settings = directory / "tokenizer_config.json"
    if settings.exists() and read_json(settings).get("padding_side") == "left":
        raise UnsupportedCheckpoint(
            "tokenizer_config.json: padding_side is 'left'; queries can be expanded only on the right"
        )
    if named is not None:
        return min(tokenizer.ids_of((named,)))
    for name in ("mask_token", "eos_token"):
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            path = directory / file
            value: Any = read_json(path).get(name) if path.exists() else None
            text = value.get("content") if isinstance(value, dict) else value
            number = tokenizer.token_id(str(text)) if text else None
            if number is not None:
                return number
    raise UnsupportedCheckpoint("tokenizer_config.json names no mask_token to expand queries with")


class ColbertReader(Reader):
    """Reads token vectors and MaxSim scores."""

    readout: Readout = "all"

    def __init__(
        self,
        project: TokenProjection,
        tokenizer: TextTokenizer,
        words: tuple[str, ...],
        cache: ModelDocuments | None,
    ) -> None:
        self._project, self._cache = project, cache
        skip = {tokenizer.token_id(word) for word in words}
        # a word that is not a token is not skipped: its pieces, or the unknown token, are part of other words too
        self._matched = np.ones(tokenizer.vocab_size, dtype=bool)
        self._matched[[number for number in skip if number is not None]] = False

    def picks(self, work: Work) -> npt.NDArray[np.int64]:
        """Return the places of the tokens that are matched."""
        ids = work.tokens.ids
        whole = work.index == QUERY or work.job.is_query
        return np.arange(len(ids)) if whole else np.flatnonzero(self._matched[ids])

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        assert batch.picked is not None
        # all rows are projected, because adapters index rows of the whole batch; the few unmatched rows cost little
        tokens = self._project(hidden)[batch.picked.rows]
        jobs: dict[Job, list[int]] = {}  # → packed places of its documents
        for packed, place in enumerate(batch.order):
            work = works[place]
            if work.index == QUERY:
                work.job.query_vectors = QueryVectors(tokens[batch.picked.of(packed)].clone(), None, None)
            elif "multivector" not in work.job.outputs:
                jobs.setdefault(work.job, []).append(packed)
        outputs, finishes = Outputs(), []
        if any("multivector" in work.job.outputs for work in works):
            finishes.append(_vectors_of(outputs.add(tokens), batch, works))
        for job, documents in jobs.items():
            read = self._matches if "token_scores" in job.outputs else self._scores
            finishes.append(read(job, documents, tokens, batch, works, outputs))

        def finish(arrays: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(works)
            for own in finishes:
                for packed, result in own(arrays):
                    results[batch.order[packed]] = result
            return results

        return Pending(outputs.tensors, finish)

    def _matches(
        self,
        job: Job,
        documents: list[int],
        tokens: Tensor,
        batch: PackedBatch,
        works: list[Work],
        outputs: Outputs,
    ) -> Finish:
        query, picked = _query_of(job), batch.picked
        assert picked is not None
        place = outputs.add(query.tokens @ tokens.T)  # [query tokens, picked tokens]

        def finish(arrays: list[Any]) -> Iterator[tuple[int, Any]]:
            for packed in documents:
                found = arrays[place][:, picked.of(packed)]
                yield packed, TokenMatches.of(query, None, found, self.picks(works[batch.order[packed]]))

        return finish

    def _scores(
        self,
        job: Job,
        documents: list[int],
        tokens: Tensor,
        batch: PackedBatch,
        works: list[Work],
        outputs: Outputs,
    ) -> Finish:
        query = _query_of(job).to(tokens.device)
        for packed in documents:
            work = works[batch.order[packed]]
            if self._cache and work.key and batch.picked:
                vectors = DocumentVectors(tokens[batch.picked.of(packed)].clone())
                self._cache.put(work.key, CachedDocument(vectors, work.cut, len(work.tokens)))
        place = outputs.add(colbert_scores(query, tokens, batch, documents))
        return lambda arrays: ((packed, float(arrays[place][packed])) for packed in documents)


Finish = Callable[[list[Any]], Iterable[tuple[int, Any]]]  # arrays → packed place and result of some works


def _vectors_of(place: int, batch: PackedBatch, works: list[Work]) -> Finish:
    picked = batch.picked
    assert picked is not None

    def finish(arrays: list[Any]) -> Iterator[tuple[int, Any]]:
        for packed, caller in enumerate(batch.order):
            if "multivector" in works[caller].job.outputs:
                # a view would keep the whole batch alive until the answer is written
                yield packed, {"multivector": arrays[place][picked.of(packed)].copy()}

    return finish


def _query_of(job: Job) -> QueryVectors:
    if job.query_vectors is None:
        raise RuntimeError("a ColBERT document was run before its query")
    return job.query_vectors


def _tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    if not isinstance(spec.head, LateInteractionSpec):
        raise TypeError(f"expected a LateInteractionSpec, got {spec.head!r}")
    tokenizer = TextTokenizer(directory, token_types=spec.backbone.token_types)
    tokenizer.check_side("ColBERT")
    return tokenizer


def _input(parts: Parts) -> ColbertInput:
    return ColbertInput(parts.head, parts.tokenizer, parts.directory, parts.documents)


def _reader(parts: Parts, weights: CheckpointWeights) -> ColbertReader:
    head: LateInteractionSpec = parts.head
    own = [weights.folder(p.folder) if p.folder else weights for p in head.projections]
    project = TokenProjection(head.projections, own)
    return ColbertReader(project, parts.tokenizer, head.skip_words, parts.documents)


COLBERT = Kind(input=_input, reader=_reader, tokenizer=_tokenizer)
