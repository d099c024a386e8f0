"""The plan of one score request: built once when the model is leased, then used for the job and the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, structs

from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking, Job, M3Scoring, ScoreTexts
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InvalidInput
from sie_server.models.spec import ClassifierSpec
from sie_server.serving.requests import truncation
from sie_server.serving.requests.candidates import CHARS_PER_TOKEN, Candidates, characters_of
from sie_server.serving.requests.options import ParsedOptions, refuse_instruction
from sie_server.serving.requests.ranking import item_id, per_document, rank
from sie_server.serving.requests.score_options import (
    Scale,
    chunking_of,
    cutoff_layer_of,
    m3_scoring_of,
    scale_of,
)
from sie_server.wire import Options, ScoreResponse, Usage


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
        scale, limit = scale_of(spec, options), engine.limit(options.max_seq_length)
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

    def response(self, job: Job) -> ScoreResponse:
        """Rank the results of the finished job.

        Raises:
            InferenceError: a score is not a finite number.
        """
        request = self.candidates.request
        documents = per_document(job, self.options.aggregate)
        top_n = self.options.top_n
        return ScoreResponse(
            self.model,
            request.query.id,
            rank(request.items, documents, self.scale.activation, self.options),
            Usage(job.input_tokens),
            self.scale.score_type,
            job.query_truncated or UNSET,
            self._warnings(job, documents.truncated) or UNSET,
            top_n=top_n if top_n and top_n < len(request.items) else UNSET,
        )

    def _warnings(self, job: Job, truncated: Sequence[bool]) -> list[str]:
        warnings = list(self.warnings)
        if job.query_truncated:
            paired, query = isinstance(self.engine.spec.head, ClassifierSpec), self.candidates.query or ""
            warnings.append(truncation.query_warning(job, query, self.limit, paired=paired))
        if self.chunking:
            return warnings + truncation.chunk_warnings(truncated, self.chunking.most)
        if self.candidates.texts is None:
            return warnings
        most, texts = self.options.max_document_tokens, self.candidates.texts
        return warnings + truncation.text_warnings(job, truncated, texts, self.engine, self.limit, most)


def merged(plans: Sequence[ScorePlan], responses: Sequence[ScoreResponse]) -> ScoreResponse:
    """Return the responses to several queries as one; warnings about texts name the first item of their query."""
    if len(responses) == 1:
        return responses[0]
    shared = plans[0].warnings
    warnings = list(shared)
    for plan, response in zip(plans, responses, strict=True):
        first = item_id(plan.candidates.request.items, 0)
        warnings += [f"item {first}: {text}" for text in (response.warnings or [])[len(shared) :]]
    return structs.replace(
        responses[0],
        query_id=None,
        scores=[entry for response in responses for entry in response.scores],
        usage=Usage(sum(response.usage.input_tokens for response in responses)),
        query_truncated=any(response.query_truncated is True for response in responses) or UNSET,
        warnings=warnings or UNSET,
    )


def _require_score(model: str, engine: Engine) -> None:
    outputs = engine.spec.outputs
    if "score" not in outputs:
        raise InvalidInput(f"model {model!r} has no output 'score'; it has {', '.join(outputs)}")
