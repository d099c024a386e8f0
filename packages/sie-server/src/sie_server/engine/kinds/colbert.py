"""ColBERT between text and scores: markers and mask expansion in, token vectors and MaxSim out.

Exactly as PyLate 1.6 (https://github.com/lightonai/pylate, `pylate/models/colbert.py`) reads a checkpoint, which agrees
with Stanford's code on the ids: texts are stripped; the marker goes after the first token and counts in the limit; a
query is filled up to its length with mask tokens of token type 0, all of whose vectors are matched. Where a checkpoint
does not attend to the expansion, those tokens look at the real ones and are looked at by none, not even by
themselves. Documents keep every token for the encoder; those in the skip list are not matched. A checkpoint in the
layout of sentence-transformers 6 has prompts in place of markers, tokenised with the text as it came.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.engine.document_cache import CachedDocument, ModelDocuments
from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.engine.text.chunks import Chunking, Chunks, split
from sie_server.engine.text.jobs import document_job, window_job
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.batch import PackedBatch, Readout, Tokens
from sie_server.models.heads.late_interaction import DocumentVectors, QueryVectors, TokenProjection, maxsim
from sie_server.models.spec import LateInteractionSpec, UnsupportedCheckpoint, read_json

Floats = npt.NDArray[np.float32]


class ColbertInput:
    """Queries and documents in the two forms of the checkpoint."""

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
        """Queries, filled up where the checkpoint does so, and which were cut."""
        spec, read = self._spec, [self._spec.query_prompt + text for text in self._stripped(texts)]
        plain, cut = self._tokenizer.singles(read, spec.query_length, self._query_marker)
        if not spec.expand_to:
            return plain, cut
        tokens = []
        for query in plain:
            length = max(len(query), spec.expand_to)
            ids = np.concatenate((query.ids, np.full(length - len(query), self._filler, np.int32)))
            tokens.append(Tokens(ids, length, None if spec.attend_to_expansion else len(query)))
        return tokens, cut

    def documents(self, texts: list[str], limit: int) -> tuple[list[Tokens], list[bool]]:
        """Documents of at most `limit` tokens, and which were cut."""
        read = [self._spec.document_prompt + text for text in self._stripped(texts)]
        return self._tokenizer.singles(read, limit, self._document_marker)

    def _stripped(self, texts: list[str]) -> list[str]:
        return [text.strip() for text in texts] if self._spec.strip else texts

    def encode_job(self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool) -> Job:
        """The vectors of `texts`, read as queries or as documents."""
        job = build_job(outputs, *(self.queries(texts) if is_query else self.documents(texts, limit)))
        job.is_query = is_query
        return job

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        """One score per document; documents whose vectors are cached are not read again."""
        job = document_job(documents, limit, self.documents, self._cache)
        self._add_query(job, query)
        return job

    def chunk_job(
        self, query: str, documents: list[str], limit: int, chunking: Chunking, instruction: str | None = None
    ) -> Job:
        """One score per window of a document; marker and prompt stand in each."""
        marker, tokenizer = self._document_marker, self._tokenizer
        room = tokenizer.single_room(limit) - (marker is not None)
        parts = split(tokenizer, self._stripped(documents), room, chunking, self._spec.document_prompt)
        if self._spec.strip:
            parts = _unstripped(parts, documents)
        job = window_job(parts, lambda ids: tokenizer.single(ids, marker), self._cache)
        self._add_query(job, query)
        return job

    def vectors_job(self, query: str | Floats, documents: list[str] | list[Floats], limit: int) -> Job:
        """As `score_job`, where the query, the documents or both came as token vectors."""
        texts = [d for d in documents if isinstance(d, str)]
        given = [d for d in documents if not isinstance(d, str)]
        job = (
            Job(("score",), [None] * len(given), [False] * len(given))
            if given
            else document_job(texts, limit, self.documents, self._cache)
        )
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
    """The marker's id. PyLate would add a token that is not there, with an embedding nobody has trained."""
    if not text:
        return None
    number = tokenizer.token_id(text)
    if number is None:
        raise UnsupportedCheckpoint(f"tokenizer.json has no token {text!r}, the checkpoint's marker")
    return number


def _unstripped(parts: Chunks, documents: list[str]) -> Chunks:
    """Spans in the texts as they came, from spans in the stripped ones."""
    before = [len(text) - len(text.lstrip()) if text.strip() else 0 for text in documents]
    chunks = [
        replace(c, start=c.start + before[c.document], end=c.end + before[c.document]) for c in parts.chunks
    ]
    return replace(parts, chunks=chunks)


def _filler(tokenizer: TextTokenizer, directory: Path, named: str | None) -> int:
    """The token the checkpoint names, else the mask token; for decoders, which have none, the end-of-sequence token."""
    settings = directory / "tokenizer_config.json"
    if settings.exists() and read_json(settings).get("padding_side") == "left":
        raise UnsupportedCheckpoint(
            "tokenizer_config.json: padding_side is 'left'; queries are filled up on the right only"
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


class ColbertReader:
    """Hidden states → token vectors and MaxSim scores."""

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
        # a word that is no token is not skipped: its pieces, or the unknown token, stand for other words too
        self._matched = np.ones(tokenizer.vocab_size, dtype=bool)
        self._matched[[number for number in skip if number is not None]] = False

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        """`Reader.read`."""
        parts = self._vectors(hidden, batch, works)
        for work, vectors in zip(works, parts, strict=True):
            if work.index == QUERY:
                work.job.query_vectors = QueryVectors(vectors.clone(), None, None)
        results: list[Any] = [None] * len(works)
        jobs: dict[Job, list[int]] = {}
        for place, work in enumerate(works):
            if "multivector" in work.job.outputs:
                results[place] = {"multivector": parts[place].cpu().numpy().copy()}
            elif work.index != QUERY:
                jobs.setdefault(work.job, []).append(place)
        for job, places in jobs.items():
            for place, score in zip(places, self._scores(job, places, parts, works), strict=True):
                results[place] = score
        return results

    def _vectors(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Tensor]:
        """[matched tokens, dim] of every work, views of one block."""
        rows: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(works)
        for start, place in zip(batch.starts, batch.order, strict=True):
            work = works[place]
            ids = work.tokens.ids
            whole = work.index == QUERY or work.job.is_query
            rows[place] = start + (np.arange(len(ids)) if whole else np.flatnonzero(self._matched[ids]))
        index = torch.from_numpy(np.concatenate(rows)).to(hidden.device)
        # all rows are projected, so that adapters find theirs: the few that are not matched cost nothing beside it
        return list(self._project(hidden)[index].split([len(r) for r in rows]))

    def _scores(self, job: Job, places: list[int], parts: list[Tensor], works: list[Work]) -> list[float]:
        if job.query_vectors is None:
            raise RuntimeError("a late-interaction document came before its query")
        query = job.query_vectors.to(parts[0].device)
        for place in places:
            work = works[place]
            if self._cache and work.key:
                vectors = DocumentVectors(parts[place].clone())
                document = CachedDocument(vectors, work.cut, len(work.tokens))
                self._cache.put(work.key, document)
        return maxsim(query, [DocumentVectors(parts[place]) for place in places], None)
