"""MaxSim in blocks over documents of any length, with and without weights and pooled vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sie_sdk.scoring import maxsim_batch
from sie_server.models.heads import late_interaction
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.late_interaction import DocumentVectors, QueryVectors, maxsim

LENGTHS = [3, 1, 40, 7, 7, 100, 2]


@pytest.fixture(params=[1, 10, 47, 32_768])
def documents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[DocumentVectors]:
    monkeypatch.setattr(late_interaction, "BLOCK_ROWS", request.param)
    torch.manual_seed(1)
    return [DocumentVectors(unit(torch.randn(n, 8)), unit(torch.randn(8))) for n in LENGTHS]


def test_equals_the_clients(documents: list[DocumentVectors]) -> None:
    query = unit(torch.randn(5, 8))
    ours = maxsim(QueryVectors(query, None, None), documents, None)
    np.testing.assert_allclose(ours, maxsim_batch(query, [d.tokens for d in documents]), atol=1e-6)
    assert min(ours[1:2]) < max(ours)
    # a best match below zero stays below zero
    away = QueryVectors(-documents[1].tokens, None, None)
    assert maxsim(away, documents[1:2], None) == pytest.approx([-1.0], abs=1e-6)


def test_weights_and_pooled_vectors(documents: list[DocumentVectors]) -> None:
    query, weights, pooled = unit(torch.randn(3, 8)), torch.tensor([0.0, 1.0, 3.0]), unit(torch.randn(8))
    ours = maxsim(QueryVectors.build(query, weights, weights.sum(), pooled, np.arange(3)), documents, 0.5)
    for score, document in zip(ours, documents, strict=True):
        best = (query @ document.tokens.T).amax(1)
        assert document.pooled is not None
        expected = (weights * best).sum() / 4 + 0.5 * (pooled @ document.pooled)
        assert score == pytest.approx(float(expected), abs=1e-6)
    none = torch.zeros(0)
    nothing = QueryVectors.build(query[:0], none, none.sum(), pooled, np.arange(0))
    dense = [0.5 * float(pooled @ d.pooled) for d in documents if d.pooled is not None]
    np.testing.assert_allclose(maxsim(nothing, documents, 0.5), dense, atol=1e-6)
