"""The plan of one score request: built once when the model is leased, then used for the job and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Chunking, Job, M3Scoring, ScoreTexts
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InvalidInput
from sie_server.models.spec import ClassifierSpec
from sie_server.serving.finishing import DocumentScores, Part, Reading
from sie_server.serving.requests import truncation
from sie_server.serving.requests.candidates import CHARS_PER_TOKEN, Candidates, characters_of, sizes_of
from sie_server.serving.requests.options import ParsedOptions, refuse_instruction
from sie_server.serving.requests.ranking import per_document
from sie_server.serving.requests.score_options import (
    Scale,
    chunking_of,
    cutoff_layer_of,
    m3_scoring_of,
    scale_of,
)
from sie_server.wire import Options


@dataclass(frozen=True)
class ScorePlan:
    """A score request whose every field fits the model."""

    model: str  # the name in the request
    engine: Engine
    candidates: Candidates
    options: Options
    instruction: str | None
    limit: int  # tokens per sequence
    scale: Scale
    chunking: Chunking | None
    cutoff_layer: int | None
    m3_scoring: M3Scoring
    warnings: list[str]  # from the options

    @classmethod
    def build(
        cls, model: str, engine: Engine, candidates: Candidates, parsed: ParsedOptions, max_chunks: int
    ) -> ScorePlan:
        """Check a request against the model that serves it.

        Raises:
            InvalidInput: the model has no scores, or an option or the instruction does not fit the model.
        """
        spec, options = engine.spec, parsed.known
        _require_score(model, engine)
        if not spec.takes_instruction:
            refuse_instruction(parsed.instruction)
        scale, limit = scale_of(spec, parsed), engine.limit(options.max_seq_length)
        cutoff_layer, chunking = cutoff_layer_of(spec, options), chunking_of(options, max_chunks)
        if candidates.vectors and chunking:
            raise InvalidInput("only texts can be split - at `$.options.long_document`")
        if candidates.texts is None and options.max_document_tokens:
            raise InvalidInput("only texts can be cut - at `$.options.max_document_tokens`")
        return cls(
            model=model,
            engine=engine,
            candidates=candidates,
            options=options,
            instruction=parsed.instruction.text,
            limit=limit,
            scale=scale,
            chunking=chunking,
            cutoff_layer=cutoff_layer,
            m3_scoring=m3_scoring_of(options),
            warnings=parsed.warnings,
        )

    @property
    def characters(self) -> int:
        """The characters that the model may read, for the estimate of its work."""
        texts, limit, chunking = self.candidates.texts or (), self.limit, self.chunking
        # most models read the query with every document; the measured ratio of the others is lower
        query, sequences = characters_of([self.candidates.query or ""], limit), len(texts)
        if chunking is None:
            return characters_of(texts, limit) + sequences * query
        repeats = limit / max(1, limit - (limit // 4 if chunking.overlap is None else chunking.overlap))
        windows = characters_of(texts, limit * chunking.most, repeats)
        return windows + max(sequences, windows // (limit * CHARS_PER_TOKEN)) * query

    @property
    def only_texts(self) -> bool:
        """Whether neither the query nor the candidates are vectors."""
        return not self.candidates.vectors

    @property
    def divisible(self) -> bool:
        """Whether the texts may be tokenised apart: no vectors, and no check of all texts before any is read."""
        return self.only_texts and self.options.long_document != "refuse"

    @property
    def read_texts(self) -> list[str]:
        """The texts that have results."""
        return self.candidates.texts or []

    @property
    def sizes(self) -> list[int]:
        """The characters of each text that the model may read, with those of the query."""
        [query] = sizes_of([self.candidates.query or ""], self.limit)
        most = self.limit * (self.chunking.most if self.chunking else 1)
        return [query + size for size in sizes_of(self.read_texts, most)]

    def only(self, places: Sequence[int]) -> Self:
        """Return the plan for some of the texts."""
        return replace(self, candidates=self.candidates.only(places))

    def job(self, adapter: Adapter | None) -> Job:
        """Tokenise the texts and read the vectors; blocking, for a tokeniser thread.

        Raises:
            InvalidInput: vectors that do not fit the model, or a long text that the options refuse.
        """
        job = self._tokenized(adapter)
        job.m3_scoring, job.cutoff_layer = self.m3_scoring, self.cutoff_layer
        return job

    def _tokenized(self, adapter: Adapter | None) -> Job:
        engine, candidates = self.engine, self.candidates
        documents, shortened = self.documents()
        if candidates.query is None or candidates.texts is None:
            query = candidates.query_vectors(engine.spec)
            vectors = candidates.item_vectors(engine.spec) if candidates.texts is None else documents
            job = engine.tokenize_vectors(query, vectors, self.limit, adapter=adapter)
        else:
            job = engine.tokenize_score(self.score_texts(candidates.query, documents), adapter=adapter)
        if self.options.long_document == "refuse":
            truncation.refuse_truncation(job, self.limit)
        truncation.mark_shortened(job, shortened)
        return job

    def score_texts(self, query: str, documents: list[str]) -> ScoreTexts:
        """The texts of the request and how to read them."""
        return ScoreTexts(query, documents, self.limit, self.instruction, self.chunking)

    def documents(self) -> tuple[list[str], list[bool]]:
        """The document texts, cut to `max_document_tokens`, and which of them were cut."""
        texts, most = self.candidates.texts or [], self.options.max_document_tokens
        return self.engine.shorten(texts, most) if most else (texts, [False] * len(texts))

    def part(self, job: Job) -> Part:
        """Return the results of the finished job."""
        documents, prefix = per_document(job, self.options.aggregate), len(job.prefix or ())
        query_tokens = sum(len(work.tokens) + prefix for work in job.work if work.index == QUERY)
        return Part(
            self._reading(job),
            documents,
            self._unread(job, documents),
            job.query_truncated,
            truncation.is_full(job, self.limit),
            job.input_tokens - query_tokens,
            query_tokens,
        )

    def _unread(self, job: Job, documents: DocumentScores) -> list[bool]:
        if self.candidates.texts is None or self.chunking:
            return [False] * len(documents.raw)
        wanted = min(self.limit, self.options.max_document_tokens or self.limit)
        return truncation.unread(job, documents.truncated, self.candidates.texts, wanted)

    def _reading(self, job: Job) -> Reading:
        return Reading(
            model=self.model,
            options=self.options,
            activation=self.scale.activation,
            score_type=self.scale.score_type,
            limit=self.limit,
            query_limit=job.query_limit,
            paired=isinstance(self.engine.spec.head, ClassifierSpec),
            side="start" if self.engine.truncation_side == "left" else "end",
            windows=self.chunking.most if self.chunking else None,
            texts=self.candidates.texts is not None,
            warnings=tuple(self.warnings),
        )


def _require_score(model: str, engine: Engine) -> None:
    outputs = engine.spec.outputs
    if "score" not in outputs:
        raise InvalidInput(f"model {model!r} has no output 'score'; it has {', '.join(outputs)}")
