"""What an encode request asks of a model, checked before any text is tokenised, and its results as wire types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import msgspec
from msgspec import UNSET

from sie_server.engine.job import Job, Vectors
from sie_server.errors import InvalidInput
from sie_server.models.spec import EmbeddingSpec, ModelSpec
from sie_server.serving import vectors
from sie_server.serving.requests import refuse_instruction
from sie_server.wire import EncodedItem, EncodeParams, Item, Options


@dataclass(frozen=True)
class EncodePlan:
    """One request's outputs, in the order asked, and how they are to look."""

    outputs: tuple[str, ...]
    prompt: str  # stands before every text
    dimensions: int | None
    dtype: str
    unit: bool  # the model gives dense vectors of length 1


def plan_of(model: str, spec: ModelSpec, params: EncodeParams, options: Options) -> EncodePlan:
    """Check a request against what the model can give.

    Raises:
        InvalidInput: an output, width, format or instruction that this model does not have.
    """
    outputs = tuple(dict.fromkeys(params.output_types or ["dense"]))
    for output in outputs:
        if output not in spec.outputs:
            given = ", ".join(spec.outputs)
            raise InvalidInput(
                f"model {model!r} does not give {output!r}; it gives {given} - at `$.params.output_types`"
            )
    assert isinstance(spec.head, EmbeddingSpec)  # nothing else gives vectors
    dtype, unit = params.output_dtype or "float32", spec.head.normalize
    if "dense" in outputs:
        vectors.require_unit(dtype, unit=unit)
    _check_dimensions(spec, outputs, options.dimensions)
    return EncodePlan(outputs, _prompt(spec.head, params, options), options.dimensions, dtype, unit)


def _check_dimensions(spec: ModelSpec, outputs: tuple[str, ...], dimensions: int | None) -> None:
    for output in outputs:
        if dimensions is not None and dimensions > spec.dims[output]:
            raise InvalidInput(
                f"dimensions is {dimensions}, this model's {output} vectors have {spec.dims[output]} "
                "- at `$.params.options.dimensions`"
            )


def _prompt(head: EmbeddingSpec, params: EncodeParams, options: Options) -> str:
    """The caller's instruction instead of the checkpoint's prompt, else the prompt for a query or a document."""
    if None not in (params.is_query, options.is_query) and params.is_query != options.is_query:
        raise InvalidInput("is_query says one thing here and another in the options - at `$.params.is_query`")
    is_query = params.is_query if params.is_query is not None else options.is_query
    instructions = {
        "$.params.instruction": params.instruction,
        "$.params.options.instruction": options.instruction,
    }
    if not head.prompts.any:
        refuse_instruction(*((text, path) for path, text in instructions.items()))
    given = [text for text in instructions.values() if text]
    return given[0] if given else head.prompts.of(is_query)


def encoded(index: int, item: Item, job: Job, plan: EncodePlan) -> EncodedItem:
    """The i-th text's vectors.

    Raises:
        InferenceError: a vector that is not finite; names the item.
    """
    given: Vectors = job.results[index]
    for values in given.values():
        vectors.check_finite(values, index)
    given = {
        name: vectors.cut(values, plan.dimensions, unit=name == "multivector" or plan.unit)
        for name, values in given.items()
    }
    result = EncodedItem(
        id=UNSET if item.id is None else item.id,
        dense=vectors.dense(given["dense"], plan.dtype) if "dense" in given else UNSET,
        multivector=vectors.multivector(given["multivector"], plan.dtype)
        if "multivector" in given
        else UNSET,
        truncated=True if job.truncated[index] else UNSET,
    )
    return _in_order(result, plan.outputs)


def _in_order(result: EncodedItem, outputs: tuple[str, ...]) -> EncodedItem:
    """The struct as it is, or a table that is written with its outputs in the order asked."""
    names = [name for name in EncodedItem.__struct_fields__ if name in outputs]
    if names == list(outputs):
        return result
    fields = msgspec.structs.asdict(result)
    order = ["id", *outputs, "truncated"]
    return cast(EncodedItem, {name: fields[name] for name in order if fields[name] is not UNSET})
