"""Conversion of vectors to the width and number format of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sie_server.engine.job import Sparse
from sie_server.errors import InferenceError, InvalidInput
from sie_server.wire import DenseVector, MultiVector, SparseVector

FLOATS = ("float32", "float16")  # sparse values have no fixed range
INTEGERS = ("int8", "uint8")
INT8_SCALE = 127  # a component of a unit vector lies in [-1, 1]


def convert(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Convert float32 [.., dims] to `dtype`.

    - `int8`: `round(127 · x)`, for vectors of length 1, whose components lie in [-1, 1]. So `x ≈ v / 127`, and the
      product of two such vectors is `127² · cosine`. The scale is fixed, so vectors of different requests compare.
    - `uint8`: the same plus 128 (zero is 128): `x ≈ (v - 128) / 127`.
    - `ubinary`: the signs of 8 dimensions packed into a byte, [.., dims / 8], the first sign in the highest bit
      (numpy's packbits). `binary` is the same minus 128, as int8, like sentence-transformers' `quantize_embeddings`.
    """
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16)
    if dtype in INTEGERS:
        scaled = np.rint(np.clip(values, -1, 1) * INT8_SCALE)
        return scaled.astype(np.int8) if dtype == "int8" else (scaled + 128).astype(np.uint8)
    bits = np.packbits(values > 0, axis=-1)
    return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def cut(values: npt.NDArray[np.float32], dimensions: int | None, *, unit: bool) -> npt.NDArray[np.float32]:
    """Cut [.., dims] to the first `dimensions`, and scale unit vectors back to length 1 (Matryoshka).

    Kusupati et al., 2022, https://arxiv.org/abs/2205.13147: models trained for it order their dimensions by use.
    """
    if dimensions is None or dimensions == values.shape[-1]:
        return values
    kept: npt.NDArray[np.float32] = values[..., :dimensions]
    return normalized(kept) if unit else kept


def normalized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale [.., dims] to length 1; a vector of zeros stays one."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    return unit


def require_unit(dtype: str, *, unit: bool) -> None:
    """Refuse integer formats for other vectors than unit vectors, because their scale is fixed."""
    if dtype in INTEGERS and not unit:
        raise InvalidInput(
            f"output_dtype {dtype!r} needs vectors of length 1, and this model does not normalise its vectors; "
            "use float32, float16, binary or ubinary - at `$.params.output_dtype`"
        )


def sparse(entries: Sparse, dims: int, dtype: str) -> SparseVector:
    """Return the wire form of a sparse vector; `dims` is the size of the vocabulary."""
    return SparseVector(dims, dtype, entries.indices, convert(entries.values, dtype))


def check_finite(values: npt.NDArray[np.float32], index: int) -> None:
    """Refuse to return a vector with NaN or infinity in it."""
    if not np.isfinite(values).all():
        raise InferenceError(
            f"the model returned a vector that is not finite for $.items[{index}]; check its weights"
        )


def dense(values: npt.NDArray[np.float32], dtype: str) -> DenseVector:
    """Return the wire form of a dense vector; `dims` counts dimensions before packing."""
    return DenseVector(dims=values.shape[-1], dtype=dtype, values=convert(values, dtype))


def multivector(values: npt.NDArray[np.float32], dtype: str) -> MultiVector:
    """Return the wire form of token vectors [tokens, dims]."""
    tokens, dims = values.shape
    return MultiVector(token_dims=dims, num_tokens=tokens, dtype=dtype, values=convert(values, dtype))
