"""The plan of one encode request: checked before any text is tokenised, then used for the job and the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import msgspec
from msgspec import UNSET

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, Sparse, Vectors
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InvalidInput
from sie_server.models.spec import EmbeddingSpec, LateInteractionSpec, ModelSpec
from sie_server.serving.finishing import text_warnings
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.requests import truncation, vectors
from sie_server.serving.requests.candidates import characters_of, sizes_of
from sie_server.serving.requests.options import Instruction, ParsedOptions, refuse_instruction
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import EncodedItem, EncodeParams, EncodeResponse, Item, Options, Usage


@dataclass(frozen=True)
class EncodePlan:
    """An encode request whose every field fits the model."""

    model: str  # the name in the request
    engine: Engine
    items: list[Item]
    texts: list[str]
    prompt: str  # put before every text
    limit: int  # tokens per text
    outputs: tuple[str, ...]  # in the order of the request
    is_query: bool
    dimensions: int | None
    dtype: str
    unit: bool  # dense vectors of the model have length 1
    vocabulary: int  # width of sparse vectors
    warnings: list[str]  # from the options
    vendor: VendorOptions | None = None

    @classmethod
    def build(
        cls,
        model: str,
        engine: Engine,
        items: list[Item],
        texts: list[str],
        params: EncodeParams,
        parsed: ParsedOptions,
        vendor: VendorOptions | None = None,
    ) -> EncodePlan:
        """Check a request against the model that serves it.

        Raises:
            InvalidInput: the model has no such output, width or format, or takes no instruction.
        """
        spec, options = engine.spec, parsed.known
        outputs = _outputs(model, spec, params)
        if not isinstance(spec.head, EmbeddingSpec | LateInteractionSpec):
            raise RuntimeError(f"the head of {model!r} has vector outputs without a vector spec")
        dtype, unit = params.output_dtype or "float32", spec.head.normalize
        if "dense" in outputs:
            vectors.require_unit(dtype, unit=unit)
        if "sparse" in outputs and dtype not in vectors.FLOATS:
            raise InvalidInput(
                f"sparse vectors are returned as {' or '.join(vectors.FLOATS)}, not {dtype!r} "
                "- at `$.params.output_dtype`"
            )
        _check_dimensions(spec, outputs, options.dimensions)
        if vendor:
            is_query = vendor.prompt.is_query
            prompt = vendor.prompt.of(spec.head.prompts, parsed.instruction.text, parsed.warnings)
            _check_normalize(vendor.normalize, unit=unit)
        else:
            is_query = _is_query(params, options)
            prompt = _prompt(spec.head, parsed.instruction, is_query)
        return cls(
            model=model,
            engine=engine,
            items=items,
            texts=texts,
            prompt=prompt,
            limit=engine.limit(options.max_seq_length),
            outputs=outputs,
            is_query=bool(is_query),
            dimensions=options.dimensions,
            dtype=dtype,
            unit=unit,
            vocabulary=spec.backbone.vocab_size,
            warnings=parsed.warnings,
            vendor=vendor,
        )

    @property
    def characters(self) -> int:
        """The characters that the model may read, for the estimate of its work."""
        return characters_of(self.texts, self.limit)

    @property
    def only_texts(self) -> bool:
        """Encode requests have no vectors."""
        return True

    @property
    def divisible(self) -> bool:
        """Whether the texts may be tokenised apart: no check of all texts before any is read."""
        return not self.vendor or self.vendor.truncate

    @property
    def read_texts(self) -> list[str]:
        """The texts that have results."""
        return self.texts

    @property
    def sizes(self) -> list[int]:
        """The characters of each text that the model may read."""
        return sizes_of(self.texts, self.limit)

    def only(self, places: Sequence[int]) -> Self:
        """Return the plan for some of the texts; `items` stay those of the request."""
        return replace(self, texts=[self.texts[place] for place in places])

    def job(self, adapter: Adapter | None) -> Job:
        """Tokenise the texts; blocking, for a tokeniser thread.

        Raises:
            InvalidInput: a text would be truncated and must not be.
        """
        job = self.engine.tokenize_encode(
            self.texts,
            self.outputs,
            self.limit,
            is_query=self.is_query,
            prompt=self.prompt,
            adapter=adapter,
        )
        if self.vendor and not self.vendor.truncate and any(job.truncated):
            raise InvalidInput(
                f"the text is longer than the limit of {self.limit} tokens and must not be truncated "
                f"- at `$.items[{job.truncated.index(True)}].text`"
            )
        return job

    def response(self, job: Job, timing: RequestTiming) -> EncodeResponse:
        """Convert the vectors of the finished job.

        Raises:
            InferenceError: a vector is not finite.
        """
        items = [encoded(i, item, job, self) for i, item in enumerate(self.items)]
        unread = truncation.unread(job, job.truncated, self.texts, self.limit)
        side = "start" if self.engine.truncation_side == "left" else "end"
        warnings = self.warnings + text_warnings(job.truncated, unread, self.limit, side)
        return EncodeResponse(self.model, items, timing.wire(), Usage(job.input_tokens), warnings or UNSET)


def _outputs(model: str, spec: ModelSpec, params: EncodeParams) -> tuple[str, ...]:
    own = [output for output in spec.outputs if output != "score"]
    outputs = tuple(dict.fromkeys(params.output_types or own[:1] or ["dense"]))
    for output in outputs:
        if output not in spec.outputs:
            raise InvalidInput(
                f"model {model!r} has no output {output!r}; it has {', '.join(spec.outputs)} "
                "- at `$.params.output_types`"
            )
    return outputs


def _check_dimensions(spec: ModelSpec, outputs: tuple[str, ...], dimensions: int | None) -> None:
    if dimensions is not None and "sparse" in outputs:
        raise InvalidInput("sparse vectors cannot be cut - at `$.params.options.dimensions`")
    for output in outputs:
        if dimensions is not None and dimensions > spec.dims[output]:
            raise InvalidInput(
                f"dimensions is {dimensions}, this model's {output} vectors have {spec.dims[output]} "
                "- at `$.params.options.dimensions`"
            )


def _check_normalize(normalize: bool | None, *, unit: bool) -> None:
    if normalize is False and unit:
        raise InvalidInput(
            "this checkpoint normalises its vectors, so only vectors of length 1 are returned; omit this field "
            "- at `$.params.normalize`"
        )


def _is_query(params: EncodeParams, options: Options) -> bool | None:
    if None not in (params.is_query, options.is_query) and params.is_query != options.is_query:
        raise InvalidInput("is_query differs from options.is_query; give one - at `$.params.is_query`")
    return params.is_query if params.is_query is not None else options.is_query


def _prompt(
    head: EmbeddingSpec | LateInteractionSpec, instruction: Instruction, is_query: bool | None
) -> str:
    """Return the request's instruction, else the checkpoint's prompt for a query or a document."""
    if not head.prompts.any:
        refuse_instruction(instruction)
        return ""
    return instruction.text or head.prompts.of(is_query)


def encoded(index: int, item: Item, job: Job, plan: EncodePlan) -> EncodedItem:
    """Return the vectors of the i-th text in the width and format of the request.

    Raises:
        InferenceError: a vector is not finite; names the item.
    """
    given: Vectors = job.results[index]
    fields: dict[str, Any] = {}
    for name, values in given.items():
        vectors.check_finite(values.values if isinstance(values, Sparse) else values, index)
        if isinstance(values, Sparse):
            fields[name] = vectors.sparse(values, plan.vocabulary, plan.dtype)
        else:
            shortened = vectors.cut(values, plan.dimensions, unit=name == "multivector" or plan.unit)
            if name == "dense" and plan.vendor and plan.vendor.normalize:
                shortened = vectors.normalized(shortened)
            fields[name] = (vectors.dense if name == "dense" else vectors.multivector)(shortened, plan.dtype)
    result = EncodedItem(
        id=UNSET if item.id is None else item.id,
        truncated=True if job.truncated[index] else UNSET,
        **fields,
    )
    return _in_order(result, plan.outputs)


def _in_order(result: EncodedItem, outputs: tuple[str, ...]) -> EncodedItem:
    """Return the struct, or a dict with the outputs in the order of the request where that order differs."""
    names = [name for name in EncodedItem.__struct_fields__ if name in outputs]
    if names == list(outputs):
        return result
    fields = msgspec.structs.asdict(result)
    order = ["id", *outputs, "truncated"]
    return cast(EncodedItem, {name: fields[name] for name in order if fields[name] is not UNSET})
