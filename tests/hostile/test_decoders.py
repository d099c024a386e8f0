"""Spoiled request bodies get a result or the contract's error: 1,500 of them, and 100,000 in the long form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings

from support.checkpoints import colbert, cross_encoders
from support.hostile import seeds
from support.hostile.body_attacks import array_bodies
from support.hostile.contract import fault_of
from support.hostile.inprocess import Application, application
from support.hostile.scale import LONG, scaled
from support.servers import processes

EXPECTED = {200, 400, 404, 409, 413, 503}  # 503: a deadline that is over; `fault_of` checks the code
LOADS = {502, 503}  # admin routes only: these load models
SEEN: Counter[int] = Counter()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    root = tmp_path_factory.mktemp("fuzzed")
    models = {
        seeds.BERT: cross_encoders.make_cross_encoder(root / "bert", "bert"),
        seeds.ENCODER: processes.make_encoder(root / "encoder"),
        seeds.COLBERT: colbert.make_pylate(root / "colbert", "bert", dim=seeds.WIDTH),
    }
    with application(models, max_body_mb=8) as app:
        yield app


def check(app: Application, path: str, headers: dict[str, str], body: bytes) -> int:
    answer = app.call("POST", path, headers, body)
    SEEN[answer.status] += 1
    fault = fault_of(answer.status, answer.headers, answer.body, path)
    assert fault is None, f"{path} {headers} {body!r}: {fault}"
    allowed = EXPECTED | LOADS if path.startswith("/v1/admin") else EXPECTED
    assert answer.status in allowed, f"{path} {headers} {body!r}: {answer.status} {answer.body[:300]!r}"
    return answer.status


@settings(
    max_examples=scaled(1_500, 100_000),
    deadline=None,
    derandomize=not LONG,  # the same inputs in every short run
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request=seeds.requests())
@example(request=("/v1/score/toy/colbert", {"content-type": seeds.MSGPACK}, b"\xdf\xff\xff\xff\xff"))
def test_spoiled_bodies(app: Application, request: tuple[str, dict[str, str], bytes]) -> None:
    check(app, *request)


@pytest.mark.parametrize("number", range(len(array_bodies())))
def test_odd_arrays(app: Application, number: int) -> None:
    """Shapes are checked as arithmetic: an array without elements may still have sizes that no array can have."""
    check(app, f"/v1/score/{seeds.COLBERT}", {"content-type": seeds.MSGPACK}, array_bodies()[number])


def test_both_results_and_errors_occur() -> None:
    """The mutations reach the model as well as the decoders."""
    assert SEEN[200] > 50 and SEEN[400] > 50, SEEN


@pytest.mark.parametrize("seed", seeds.SEEDS, ids=lambda seed: seed.path)
def test_seeds_are_valid(app: Application, seed: seeds.Seed) -> None:
    """An unspoiled body reaches the model; array maps exist in MessagePack only."""
    sent = [seeds.MSGPACK] if seed.own else []
    if "b'nd'" not in repr(seed.body):
        sent.append(seeds.JSON)
    for media in sent:
        answer = app.call("POST", seed.path, {"content-type": media}, seeds.encoded(seed.body, media))
        expected = 404 if seed.path.endswith("adapters/unload") else 200
        assert answer.status == expected, answer.body
