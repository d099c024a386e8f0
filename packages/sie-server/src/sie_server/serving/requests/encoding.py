"""What an encode request asks of a model, checked before any text is tokenised, and its results as wire types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from msgspec import UNSET

from sie_server.engine.job import Job, Sparse, Vectors
from sie_server.errors import InvalidInput
from sie_server.models.spec import EmbeddingSpec, LateInteractionSpec, ModelSpec
from sie_server.serving.requests import vectors
from sie_server.serving.requests.options import Instruction, refuse_instruction
from sie_server.wire import EncodedItem, EncodeParams, Item, Options


@dataclass(frozen=True)
class EncodePlan:
    """One request's outputs, in the order asked, and how they are to look."""

    outputs: tuple[str, ...]
    prompt: str  # stands before every text
    is_query: bool
    dimensions: int | None
    dtype: str
    unit: bool  # the model gives dense vectors of length 1
    vocabulary: int  # width of sparse vectors


def plan_of(
    model: str, spec: ModelSpec, params: EncodeParams, options: Options, instruction: Instruction
) -> EncodePlan:
    """Check a request against what the model can give.

    Raises:
        InvalidInput: an output, width, format or instruction that this model does not have.
    """
    own = [output for output in spec.outputs if output != "score"]
    outputs = tuple(dict.fromkeys(params.output_types or own[:1] or ["dense"]))
    for output in outputs:
        if output not in spec.outputs:
            given = ", ".join(spec.outputs)
            raise InvalidInput(
                f"model {model!r} does not give {output!r}; it gives {given} - at `$.params.output_types`"
            )
    assert isinstance(spec.head, EmbeddingSpec | LateInteractionSpec)  # the others give no vectors
    dtype, unit = params.output_dtype or "float32", spec.head.normalize
    if "dense" in outputs:
        vectors.require_unit(dtype, unit=unit)
    if "sparse" in outputs and dtype not in vectors.FLOATS:
        raise InvalidInput(
            f"sparse vectors are given as {' or '.join(vectors.FLOATS)}, not {dtype!r} "
            "- at `$.params.output_dtype`"
        )
    _check_dimensions(spec, outputs, options.dimensions)
    is_query = _is_query(params, options)
    prompt, vocabulary = _prompt(spec.head, instruction, is_query), spec.backbone.vocab_size
    return EncodePlan(outputs, prompt, bool(is_query), options.dimensions, dtype, unit, vocabulary)


def _check_dimensions(spec: ModelSpec, outputs: tuple[str, ...], dimensions: int | None) -> None:
    if dimensions is not None and "sparse" in outputs:
        raise InvalidInput("sparse vectors cannot be cut - at `$.params.options.dimensions`")
    for output in outputs:
        if dimensions is not None and dimensions > spec.dims[output]:
            raise InvalidInput(
                f"dimensions is {dimensions}, this model's {output} vectors have {spec.dims[output]} "
                "- at `$.params.options.dimensions`"
            )


def _is_query(params: EncodeParams, options: Options) -> bool | None:
    if None not in (params.is_query, options.is_query) and params.is_query != options.is_query:
        raise InvalidInput("is_query says one thing here and another in the options - at `$.params.is_query`")
    return params.is_query if params.is_query is not None else options.is_query


def _prompt(
    head: EmbeddingSpec | LateInteractionSpec, instruction: Instruction, is_query: bool | None
) -> str:
    """The caller's instruction instead of the checkpoint's prompt, else the prompt for a query or a document."""
    if not head.prompts.any:
        refuse_instruction(instruction)
        return ""
    return instruction.text or head.prompts.of(is_query)


def encoded(index: int, item: Item, job: Job, plan: EncodePlan) -> EncodedItem:
    """The i-th text's vectors.

    Raises:
        InferenceError: a vector that is not finite; names the item.
    """
    given: Vectors = job.results[index]
    fields: dict[str, Any] = {}
    for name, values in given.items():
        vectors.check_finite(values.values if isinstance(values, Sparse) else values, index)
        if isinstance(values, Sparse):
            fields[name] = vectors.sparse(values, plan.vocabulary, plan.dtype)
        else:
            cut = vectors.cut(values, plan.dimensions, unit=name == "multivector" or plan.unit)
            fields[name] = (vectors.dense if name == "dense" else vectors.multivector)(cut, plan.dtype)
    result = EncodedItem(
        id=UNSET if item.id is None else item.id,
        truncated=True if job.truncated[index] else UNSET,
        **fields,
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
