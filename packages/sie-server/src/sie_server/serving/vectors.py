"""Vectors in the number format a caller asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sie_server.errors import InferenceError, InvalidInput
from sie_server.wire import DenseVector, MultiVector

GIVEN = ("float32", "float16", "binary", "ubinary")


def convert(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """float32 [.., dims] → `dtype`; the binary formats pack the signs of 8 dimensions into a byte, [.., dims / 8].

    `ubinary` is numpy's packbits (first dimension in the highest bit); `binary` is the same minus 128, as int8: the
    convention of sentence-transformers' `quantize_embeddings`.
    """
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16)
    if dtype not in GIVEN:
        raise InvalidInput(
            f"output_dtype {dtype!r} is not given by this model; given: {', '.join(GIVEN)} - at `$.params.output_dtype`"
        )
    bits = np.packbits(values > 0, axis=-1)
    return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def check_finite(values: npt.NDArray[np.float32], index: int) -> None:
    """Never hand out a vector with NaN or infinity in it."""
    if not np.isfinite(values).all():
        raise InferenceError(
            f"the model gave a vector that is not finite for $.items[{index}]; check its weights"
        )


def dense(values: npt.NDArray[np.float32], dtype: str) -> DenseVector:
    """`dims` counts dimensions before packing."""
    return DenseVector(dims=values.shape[-1], dtype=dtype, values=convert(values, dtype))


def multivector(values: npt.NDArray[np.float32], dtype: str) -> MultiVector:
    """[tokens, dims]."""
    tokens, dims = values.shape
    return MultiVector(token_dims=dims, num_tokens=tokens, dtype=dtype, values=convert(values, dtype))
