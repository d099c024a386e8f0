"""docs/http-api.md lists exactly the routes, fields, headers, error codes and metrics that the code has.

A check returns problems that name the missing or wrong fact, so the tests also apply it to a page that lacks a fact or
states it wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sie_sdk.errors import error_for
from sie_server import arrays
from support.docs import http_facts as facts
from support.docs.pages import DOCS, anchors, code, rows, section

ROOT = Path(__file__).parents[3]
PAGE = (DOCS / "http-api.md").read_text(encoding="utf-8")


def differences(what: str, page: facts.Facts, real: facts.Facts) -> list[str]:
    """Return a problem for each fact that is only on the page or only in the code."""
    missing = [f"{what} {' '.join(fact)} is missing on the page" for fact in sorted(real - page)]
    return missing + [f"{what} {' '.join(fact)} is not in the code" for fact in sorted(page - real)]


def check_routes(page: str) -> list[str]:
    own = {(code(method), code(path), scope) for method, path, scope, _ in rows(section(page, "Routes"))}
    dialects = {(code(method), code(path), "infer") for method, path, _ in rows(section(page, "Dialects"))}
    return differences("route", own | dialects, facts.routes())


def check_dialects(page: str) -> list[str]:
    listed = {(code(path), names) for _, path, names in rows(section(page, "Dialects"))}
    return differences("dialect", listed, facts.dialect_paths())


def check_fields(page: str) -> list[str]:
    problems = []
    for struct in facts.structs():
        name, real = struct.__name__, facts.fields(struct)
        listed = {code(field): cells for field, *cells in rows(section(page, name))}
        problems += differences(
            "field", {(name, field) for field in listed}, {(name, field) for field in real}
        )
        if listed.keys() == real.keys() and list(listed) != list(real):
            problems.append(f"the fields of {name} have another order in the code")
        for field in [field for field in real if field in listed]:
            kind, default, meaning = listed[field]
            given = kind if real[field][0] == facts.ANYTHING else real[field][0]
            if (sorted_values(kind), default) != (given, real[field][1]):
                problems.append(f"field {name} {field} is {' / '.join(real[field])}, not {kind} / {default}")
            if not meaning:
                problems.append(f"field {name} {field} has no meaning")
    return problems


def sorted_values(kind: str) -> str:
    """Return a type with the values of its literal sorted."""
    return re.sub(r"one of (`.*`)", lambda m: f"one of {', '.join(sorted(m[1].split(', ')))}", kind)


def check_headers(page: str) -> list[str]:
    sent = {(code(row[0]).lower(),) for row in rows(section(page, "Response headers"))}
    read = {(code(row[0]).lower(),) for row in rows(section(page, "Request headers"))}
    problems = differences("response header", sent, facts.response_headers())
    return problems + differences("request header", read, facts.request_headers())


def check_errors(page: str) -> list[str]:
    listed = {
        (code(name), status, after, retried, code(exception))
        for name, status, _, after, retried, exception in rows(section(page, "Error codes"))
    }
    return differences("error", listed, facts.error_codes())


def check_arrays(page: str) -> list[str]:
    text = section(page, "Arrays")
    kinds = next((row[1] for row in rows(text) if row[0] == "`type`"), "")
    problems = differences(
        "dtype", {(d,) for d in re.findall(r"`(\S+)`", kinds)}, {(d,) for d in arrays.DTYPES}
    )
    numbers = [f"at most {arrays.MAX_DIMS} dimensions", f"extension type {arrays.EXT_ARRAY}"]
    return problems + [f"'{words}' is missing on the page" for words in numbers if words not in text]


def check_metrics(page: str) -> list[str]:
    listed = {(code(row[0]), row[1]) for row in rows(section(page, "Health and metrics"))}
    return differences("metric", listed, facts.metrics())


CHECKS: list[Callable[[str], list[str]]] = [
    check_routes,
    check_dialects,
    check_fields,
    check_headers,
    check_errors,
    check_arrays,
    check_metrics,
]


def problems_of(page: str) -> list[str]:
    return [problem for check in CHECKS for problem in check(page)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_page_agrees_with_the_code(check: Callable[[str], list[str]]) -> None:
    assert check(PAGE) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("| `POST` | `/v1/inspect/{model}` |", "route POST /v1/inspect/{model} infer is missing"),
        ("| `GET` | `/metrics` |", "route GET /metrics open is missing"),
        ("| `POST` | `/tei/embed` |", "dialect /tei/embed TEI is missing"),
        ("| `top_n` |", "field Options top_n is missing"),
        ("| `read_to` |", "field InspectedText read_to is missing"),
        ("| `encoding_format` |", "field EmbeddingsRequest encoding_format is missing"),
        ("| `X-Queue-Time` |", "response header x-queue-time is missing"),
        ("| `Retry-After` |", "response header retry-after is missing"),
        ("| `Via` |", "request header via is missing"),
        ("| `X-SIE-Pool` |", "request header x-sie-pool is missing"),
        ("| `CONFLICT` |", "error CONFLICT 409 no no RequestError is missing"),
        ("| `INTERNAL_ERROR` |", "error INTERNAL_ERROR 500 no no ServerError is missing"),
        ("| `sie_batch_tokens` |", "metric sie_batch_tokens histogram is missing"),
    ],
)
def test_a_fact_that_is_missing_is_named(line: str, problem: str) -> None:
    lacking = "\n".join(each for each in PAGE.split("\n") if not each.startswith(line))
    assert lacking != PAGE
    problems = problems_of(lacking)
    assert any(each.startswith(problem) for each in problems), problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "`/v1/admin/load` | admin |",
            "`/v1/admin/load` | infer |",
            "route POST /v1/admin/load admin is missing",
        ),
        (
            "| `/vllm/score` | vLLM score |",
            "| `/vllm/score` | TEI |",
            "dialect /vllm/score vLLM score is missing",
        ),
        ("| `top_n` | integer ≥ 1 |", "| `top_n` | integer |", "field Options top_n is integer ≥ 1 / null"),
        ("| `query_id` | string or null |", "| `query_id` | string |", "field ScoreResponse query_id"),
        ("null | `base64`:", "`float` | `base64`:", "field EmbeddingsRequest encoding_format"),
        (
            "`calibrated` | null |",
            "`tanh` | null |",
            "field Options normalize is one of `calibrated`, `none`",
        ),
        ("`QUEUE_FULL` | 503 |", "`QUEUE_FULL` | 429 |", "error QUEUE_FULL 503 yes until the deadline"),
        ("yes | 3 times |", "yes | no |", "error RESOURCE_EXHAUSTED 503 yes 3 times"),
        ("`>f8`", "`>f7`", "dtype >f8 is missing"),
        ("at most 8 dimensions", "at most 9 dimensions", "'at most 8 dimensions' is missing"),
    ],
)
def test_a_fact_that_is_wrong_is_named(old: str, new: str, problem: str) -> None:
    assert old in PAGE
    problems = problems_of(PAGE.replace(old, new))
    assert any(each.startswith(problem) for each in problems), problems


def test_the_typescript_client_has_the_same_exceptions() -> None:
    """The page names one class for both clients, so both must choose it from the same status and code."""
    source = (ROOT / "packages" / "sie-ts-sdk" / "src" / "errors.ts").read_text(encoding="utf-8")
    by_code = dict(re.findall(r'^  "(\d+ [A-Z_]+)": (\w+),$', source, re.MULTILINE))
    by_status = dict(re.findall(r"^  (\d+): (\w+),$", source, re.MULTILINE))
    by_hundred = {"4": "RequestError", "5": "ServerError"}
    assert by_code and by_status
    for kind in facts.error_classes():
        status = str(kind.status)
        found = by_code.get(f"{status} {kind.code}") or by_status.get(status) or by_hundred[status[0]]
        python = error_for(kind.status, kind.code, "", request_id=None, details={})
        assert found == type(python).__name__, kind.code


def test_every_link_to_the_page_has_its_heading() -> None:
    links = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    for folder in ("packages", "docs", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".ts", ".md") and "node_modules" not in file.parts:
                links |= set(re.findall(r"http-api\.md#([\w-]+)", file.read_text(encoding="utf-8")))
    assert len(links) > 20
    assert links - anchors(PAGE) == set()
