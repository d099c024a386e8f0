"""schemathesis: requests generated from /openapi.json, and its checks on the answers of a real server.

All checks run, with two adjustments:

- `not_a_server_error` accepts 502 and 503, which are documented answers; `fault_of` checks their codes.
- `positive_data_acceptance` is left out. It wants a result for every body that the schema allows, but which fields and
  options a body may have depends on the model, and bodies of dialects are described by their examples only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import NotAServerErrorConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sie_server.api import openapi
from support.hostile.contract import fault_of
from support.hostile.scale import LONG, STALL_S, scaled
from support.hostile.targets import Observed

CASES: Counter[int] = Counter()
schema = schemathesis.openapi.from_dict(openapi.document())
schema.config.checks.not_a_server_error = NotAServerErrorConfig(
    expected_statuses=["2xx", "3xx", "4xx", "502", "503"]
)
OPERATIONS = [operation.ok() for operation in schema.get_all_operations()]


@schemathesis.serializer("application/msgpack")
def packed(_: Any, value: Any) -> bytes:
    return bytes(msgpack.packb(value, default=repr, unicode_errors="surrogatepass"))


@schemathesis.deserializer("application/msgpack")
def unpacked(_: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content, strict_map_key=False)


def cases(operation: Any) -> st.SearchStrategy[Any]:
    """Return valid and invalid requests; half of those for a model are for one that exists."""
    kinds = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    if "{model}" in operation.path:
        known = operation.as_strategy(path_parameters={"model": "sie/mini-en"})
        kinds += [known, known]
    return st.one_of(kinds)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_described_route(operation: Any, observed: Observed) -> None:
    @settings(
        max_examples=scaled(6, 200),
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate] if not LONG else list(Phase),
    )
    @given(case=cases(operation))
    def check(case: Any) -> None:
        answer = case.call(base_url=observed.server.base_url, timeout=STALL_S)
        CASES[answer.status_code] += 1
        headers = {name.lower(): values[0] for name, values in answer.headers.items()}
        fault = fault_of(answer.status_code, headers, answer.content, case.path)
        assert fault is None, fault
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])

    check()


def test_enough_cases_ran() -> None:
    print(dict(CASES))
    assert CASES.total() >= scaled(150, 5_000), CASES
    assert CASES[200] and CASES[400], CASES
