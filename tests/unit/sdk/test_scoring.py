"""`maxsim` equals values computed by hand and by a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from sie_sdk import maxsim, maxsim_batch

RNG = np.random.default_rng(5)


def plain(query: np.ndarray, document: np.ndarray) -> float:
    return sum(max(float(np.dot(q, d)) for d in document) for q in query)


def test_by_hand() -> None:
    query = [[1, 0], [0, 2]]
    assert maxsim(query, [[3, 1], [2, -4]]) == 5.0  # max(3, 2) + max(2, -8)
    assert maxsim([[1.0, 0.0]], [[-1.0, 0.0], [-3.0, 5.0]]) == -1.0


def test_many_documents_of_different_lengths() -> None:
    query = RNG.standard_normal((5, 16))
    documents = [RNG.standard_normal((n, 16)) for n in (1, 7, 30)]
    scores = maxsim_batch(query, documents)
    assert (scores.shape, scores.dtype) == ((3,), np.float64)
    np.testing.assert_allclose(scores, [plain(query, document) for document in documents], rtol=1e-12)
    assert [maxsim(query, document) for document in documents] == scores.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8])
def test_narrow_numbers_do_not_overflow(dtype: type) -> None:
    vectors = np.full((2, 128), 100, dtype=dtype)
    assert maxsim(vectors, vectors) == 2 * 128 * 100 * 100


def test_no_documents_give_no_scores() -> None:
    assert maxsim_batch(np.ones((1, 2), dtype=np.float32), []).shape == (0,)


def test_other_widths_are_named() -> None:
    with pytest.raises(ValueError, match="query vectors are 4 wide, those of document 1 3"):
        maxsim_batch(np.ones((2, 4)), [np.ones((2, 4)), np.ones((2, 3))])


@pytest.mark.parametrize("shape", [(4,), (1, 2, 4), (0, 4), (2, 0), ()])
def test_other_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="query has shape"):
        maxsim(np.ones(shape), np.ones((2, 4)))
    with pytest.raises(ValueError, match="document 0 has shape"):
        maxsim(np.ones((2, 4)), np.ones(shape))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype"):
        maxsim(np.ones((1, 2), dtype=bool), np.ones((1, 2)))
