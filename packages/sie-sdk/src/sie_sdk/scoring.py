"""Late interaction in numpy, for documents whose token vectors are already known.

maxsim(q, d) = Σ over query tokens of the largest dot product with any document token. Vectors are not normalised:
normalise them first if the model does not. Packed bits (binary, ubinary) must be unpacked first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def maxsim(query: ArrayLike, document: ArrayLike) -> float:
    """Score one document.

    query: [query tokens, width], document: [document tokens, width]; at least one token each.
    Raises ValueError when a shape is wrong or the widths differ.
    """
    return float(maxsim_batch(query, [document])[0])


def maxsim_batch(query: ArrayLike, documents: Sequence[ArrayLike]) -> NDArray[Any]:
    """Score many documents against one query.

    query: [query tokens, width]; documents: one [document tokens, width] each, of any number of tokens.
    Returns [documents], float64 if the query is, else float32. Raises ValueError as maxsim does, naming the
    document.
    """
    import numpy as np

    q = _tokens(query, "query")
    scores = np.empty(len(documents), dtype=q.dtype)
    for index, document in enumerate(documents):
        d = _tokens(document, f"document {index}")
        if d.shape[1] != q.shape[1]:
            raise ValueError(f"query vectors are {q.shape[1]} wide, those of document {index} {d.shape[1]}")
        scores[index] = (q @ d.T).max(axis=1).sum()  # [query tokens, document tokens] → [query tokens] → []
    return scores


def _tokens(vectors: ArrayLike, name: str) -> NDArray[Any]:
    """Return a float32 or float64 matrix [tokens, width], because products of half floats and integers overflow."""
    import numpy as np

    array = np.asarray(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected [tokens, width] with at least one token")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
