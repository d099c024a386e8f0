"""What a score request brings: texts, or token vectors in their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sie_server.arrays import array_of
from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking, Job, ScoreTexts
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InvalidInput
from sie_server.models.spec import LateInteractionSpec
from sie_server.serving.requests.options import refuse_cut, text_of
from sie_server.wire import Item, Options, ScoreRequest

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """A query and its candidates; all candidates are texts, or all are token vectors."""

    request: ScoreRequest
    query: str | None  # None: token vectors
    texts: list[str] | None

    def job(
        self,
        engine: Engine,
        limit: int,
        options: Options,
        instruction: str | None = None,
        chunking: Chunking | None = None,
        adapter: Adapter | None = None,
    ) -> Job:
        """Tokenise, and decode what came as vectors; blocking, for a tokeniser thread.

        Raises:
            InvalidInput: vectors for a model that has no use for them, of another width than its own, or none at all;
                a text that is too long, where the options say to refuse it.
        """
        if chunking:
            if self.query is None or self.texts is None:
                raise InvalidInput("only texts can be split - at `$.options.long_document`")
            return engine.tokenize_score(
                ScoreTexts(self.query, self.texts, limit, instruction, chunking=chunking), adapter=adapter
            )
        if options.max_document_tokens and self.texts is None:
            raise InvalidInput("only texts can be cut - at `$.options.max_document_tokens`")
        texts, short = shortened(engine, self.texts or [], options.max_document_tokens)
        if self.query is None or self.texts is None:
            job = self._vectors_job(engine, texts, limit, adapter)
        else:
            job = engine.tokenize_score(ScoreTexts(self.query, texts, limit, instruction), adapter=adapter)
        if options.long_document == "refuse":
            refuse_cut(job, limit)
        count_as_cut(job, short)
        return job

    def _vectors_job(self, engine: Engine, texts: list[str], limit: int, adapter: Adapter | None) -> Job:
        """Query, documents or both came as vectors; `texts` are the documents, none when they did."""
        head, items = engine.spec.head, self.request.items
        if not isinstance(head, LateInteractionSpec):
            at = "$.query" if self.query is None else "$.items[0]"
            raise InvalidInput(f"this model reads text, not multivector - at `{at}.multivector`")
        query = self.query
        return engine.tokenize_vectors(
            _vectors(self.request.query, head.dim, "$.query", engine.spec.backbone.max_length)
            if query is None
            else query,
            texts or [_vectors(item, head.dim, f"$.items[{i}]") for i, item in enumerate(items)],
            limit,
            adapter=adapter,
        )


def shortened(engine: Engine, texts: list[str], most: int | None) -> tuple[list[str], list[bool]]:
    """Texts of at most so many tokens (None: as they are), and which of them are shorter now."""
    return engine.shorten(texts, most) if most else (texts, [False] * len(texts))


def count_as_cut(job: Job, short: list[bool]) -> None:
    """What was shortened is cut, whether or not the model would have read it; windows are of whole documents."""
    if any(short):
        job.truncated = [cut or less for cut, less in zip(job.truncated, short, strict=True)]


def candidates_of(request: ScoreRequest) -> Candidates:
    """Check query and items as far as that does not take the model.

    Raises:
        InvalidInput: neither text nor vectors, both in one item, or some items of one kind and some of the other.
    """
    query = None if _is_vectors(request.query, "$.query") else text_of(request.query, "$.query")
    given = [_is_vectors(item, f"$.items[{i}]") for i, item in enumerate(request.items)]
    if any(given):
        if not all(given):
            odd = given.index(not given[0])
            raise InvalidInput(
                "some items are texts and some are multivectors; send all of one kind "
                f"- at `$.items[{odd}].{'multivector' if given[odd] else 'text'}`"
            )
        return Candidates(request, query, None)
    return Candidates(
        request, query, [text_of(item, f"$.items[{i}]") for i, item in enumerate(request.items)]
    )


def _is_vectors(item: Item, path: str) -> bool:
    if item.multivector is None:
        return False
    if item.text is not None:
        raise InvalidInput(f"give either text or multivector, not both - at `{path}.multivector`")
    return True


def _vectors(item: Item, width: int, path: str, most: int | None = None) -> Floats:
    """[tokens, width] float32, at most `most` tokens."""
    path = f"{path}.multivector"
    array = array_of(item.multivector, path)
    if array.ndim != 2 or 0 in array.shape:
        raise InvalidInput(
            f"shape {list(array.shape)}; expected [tokens, width] with at least one token - at `{path}`"
        )
    if array.shape[1] != width:
        raise InvalidInput(
            f"the vectors are {array.shape[1]} wide, this model's are {width} wide - at `{path}`"
        )
    if most and len(array) > most:
        raise InvalidInput(f"{len(array)} vectors; a query of this model has at most {most} - at `{path}`")
    if array.dtype.kind != "f" and not isinstance(item.multivector, list):
        raise InvalidInput(
            f"dtype {array.dtype} cannot be scored; send float16, float32 or float64 - at `{path}`"
        )
    with np.errstate(over="ignore"):
        vectors = array.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InvalidInput(f"a value is not a finite float32 - at `{path}`")
    return vectors
