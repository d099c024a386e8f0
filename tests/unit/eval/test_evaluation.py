"""Evaluations with a scorer that needs no model: resuming, samples, truncation, files."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from click.testing import CliRunner

from sie_server.cli.commands import cli
from sie_server.config import ServerConfig
from sie_server.eval import OfflineError, Report, evaluate, load
from sie_server.eval.cosine import CosineScorer
from sie_server.eval.evaluation import Plan, measure, with_scorers
from sie_server.eval.results import MOST_CHANGED
from sie_server.eval.systems import configured, parse_system, parse_systems
from sie_server.offline.errors import Refused
from support import rank_metrics
from support.judged import WordScorer, write_beir


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Return the plan of two sets and two models."""
    sets = [
        load(write_beir(tmp_path / name, queries=14, seed=seed)) for seed, name in enumerate(("one", "two"))
    ]
    return Plan(sets, parse_systems(["a/x", "a/y@fast"]), depth=12, out=tmp_path / "out")


async def test_figures_are_those_of_the_rankings(plan: Plan) -> None:
    report = await measure(plan, WordScorer())
    for each, collection in zip(report.sets, plan.collections, strict=True):
        candidates, scored = report.runs[each.name]
        for model, answers in zip(each.models, scored, strict=True):
            values = []
            for query, grades in collection.grades.items():
                order = [candidates.ranked[query][place] for place in answers.answers[query].order]
                values.append(rank_metrics.ndcg(order, grades, 10))
            assert model.changes[0].metric == "ndcg@10"
            assert model.changes[0].after == pytest.approx(sum(values) / len(values))
            assert (model.latency_p50_ms, model.latency_p95_ms, model.pairs) == (250, 250, 14 * 12)
            counted = model.changes[0].wins + model.changes[0].losses + model.changes[0].ties
            assert counted == each.queries == 14


async def test_an_interrupted_evaluation_resumes_with_the_same_table(plan: Plan) -> None:
    whole = WordScorer()
    expected = (await measure(replace(plan, out=None), whole)).as_dict()
    calls = 0
    for fail_at in (5, 3, 30):
        scorer = WordScorer(fail_at)
        with pytest.raises(OfflineError, match="went away"):
            await measure(plan, scorer)
        calls += sum(scorer.calls.values())
    last = WordScorer()
    found = await measure(plan, last)
    assert calls + sum(last.calls.values()) == sum(whole.calls.values()) == 4 * 14
    assert without_times(found.as_dict()) == without_times(expected)
    again = WordScorer()
    assert (
        without_times((await measure(plan, again)).as_dict()) == without_times(expected) and not again.calls
    )


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """Leave out the throughput, which depends on the times of the calls."""
    for each in report["sets"]:
        for model in each["models"]:
            model.pop("pairs_per_s", None)
    return report


async def test_more_queries_continue_a_sample(plan: Plan) -> None:
    some = [each.sample(5) for each in plan.collections]
    await measure(replace(plan, collections=some), WordScorer())
    more = WordScorer()
    await measure(plan, more)
    assert sum(more.calls.values()) == 4 * (14 - 5)


async def test_changed_texts_are_scored_anew_and_another_version_is_refused(plan: Plan) -> None:
    await measure(plan, WordScorer())
    first = plan.collections[0]
    changed = replace(first, queries={**first.queries, "q0": "another question"})
    scorer = WordScorer()
    await measure(replace(plan, collections=[changed]), scorer)
    assert {query for query, _ in scorer.calls} == {"another question"}
    with pytest.raises(OfflineError, match="version was '1' and is '2'"):
        await measure(plan, WordScorer(version="2"))


async def test_windows_show_the_quality_that_truncation_costs(plan: Plan) -> None:
    scorer = WordScorer(cut=40)
    plain = await measure(replace(plan, out=None), scorer)
    truncation = plain.sets[0].models[0].truncation
    assert 0 < truncation.documents < 14 * 12 and truncation.windows is None
    report = await measure(replace(plan, windows=True), scorer)
    found = report.sets[0].models[0].truncation
    assert found.queries == truncation.queries and found.windows is not None
    assert found.windows.wins + found.windows.losses + found.windows.ties == found.queries
    assert report.sets[0].models[0].changes == plain.sets[0].models[0].changes


async def test_another_number_format_is_a_second_run_after_the_first(plan: Plan) -> None:
    log: list[str] = []

    class Logged(WordScorer):
        def __init__(self, name: str) -> None:
            super().__init__(version=name)
            log.append(f"make {name}")
            self._name = name

        async def score(self, model: str, query: str, texts: Any, options: Any) -> Any:
            return await super().score(model + self._name, query, texts, options)

        async def close(self) -> None:
            log.append(f"close {self._name}")

    given = replace(plan, compare_dtype="float32")
    report = await with_scorers(given, lambda: Logged("one"), lambda: Logged("two"))
    assert log == ["make one", "close one", "make two", "close two"]
    plain = await measure(replace(plan, out=None), Logged("one"))
    other = await measure(replace(plan, out=None), Logged("two"))
    for place, each in enumerate(report.sets):
        for model, one, two in zip(
            each.models, plain.sets[place].models, other.sets[place].models, strict=True
        ):
            assert model.changes == one.changes and one.other_format is None
            assert model.other_format is not None
            assert (model.other_format.before, model.other_format.after) == (
                pytest.approx(one.changes[0].after),
                pytest.approx(two.changes[0].after),
            )
            assert model.other_format_tau is not None and -0.2 < model.other_format_tau < 0.2  # random orders
            assert one.other_format_tau is None
    assert "| in float32 |" in report.markdown() and "Kendall's τ" in report.markdown()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"endpoint": "http://127.0.0.1:9"}, "omit --endpoint"), ({}, "is that of --dtype")],
)
def test_number_formats_that_cannot_be_compared_are_refused(
    plan: Plan, settings: dict[str, str], said: str
) -> None:
    config = ServerConfig(dtype="float32")
    with pytest.raises(OfflineError, match=said):
        evaluate(plan.collections, ["a/x"], config=config, compare_dtype="float32", **settings)


async def test_a_model_without_windows_keeps_its_figures(plan: Plan) -> None:
    class Whole(WordScorer):
        async def score(self, model: str, query: str, texts: Any, options: Any) -> Any:
            if "long_document" in options:
                raise Refused("no windows")
            return await super().score(model, query, texts, options)

    report = await measure(replace(plan, windows=True), Whole(cut=40))
    found = report.sets[0].models[0].truncation
    assert found.documents > 0 and found.windows is None
    assert "not measured" in report.markdown()


async def test_a_run_with_gaps_counts_missing_queries_as_zero(plan: Plan, tmp_path: Path) -> None:
    collection = plan.collections[0]
    relevant = next(doc for doc, grade in collection.grades["q3"].items() if grade > 0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/one.trec").write_text(f"q3 Q0 {relevant} 1 1.0 t\n")
    given = replace(plan, collections=[collection], first_stage=str(tmp_path / "runs"), metrics=("mrr",))
    scorer = WordScorer()
    report = await measure(given, scorer)
    assert sum(scorer.calls.values()) == 2
    assert report.sets[0].before == {"mrr": pytest.approx(1 / 14)}
    assert any("13 queries are not in the run" in note for note in report.sets[0].notes)


async def test_vectors_are_the_first_stage_and_are_kept(plan: Plan) -> None:
    given = replace(plan, collections=plan.collections[:1], first_stage="encode:a/e", depth=5)
    scorer = WordScorer()
    report = await measure(given, scorer)
    assert scorer.calls["encode", "False"] == 30 and scorer.calls["encode", "True"] == 14
    candidates, _ = report.runs["one"]
    collection = given.collections[0]
    words = collection.queries["q0"].split()
    overlap = [sum(map(collection.documents[doc].split().count, words)) for doc in candidates.ranked["q0"]]
    assert len(overlap) == 5 and min(overlap) > 0
    assert candidates.scores["q0"] == sorted(candidates.scores["q0"], reverse=True)
    again = WordScorer()
    assert (await measure(given, again)).as_dict() == report.as_dict() and not again.calls


async def test_vectors_of_another_version_are_refused(plan: Plan) -> None:
    given = replace(plan, first_stage="encode:a/e", depth=5)
    await measure(given, WordScorer())
    with pytest.raises(OfflineError, match="version was '1' and is '2'"):
        await measure(given, WordScorer(version="2"))


async def test_a_model_of_vectors_ranks_by_their_cosine(plan: Plan) -> None:
    given = replace(plan, systems=parse_systems(["encode:a/e", "a/x"]), windows=True)
    scorer = WordScorer(cut=40)
    report = await measure(given, scorer)
    for each, collection in zip(report.sets, plan.collections, strict=True):
        candidates, (dense, _) = report.runs[each.name]
        for query, answer in dense.answers.items():
            texts = [collection.documents[document] for document in candidates.ranked[query]]
            asked = await WordScorer().encode("a/e", [collection.queries[query]], is_query=True)
            found = await WordScorer().encode("a/e", texts, is_query=False)
            assert answer.scores == pytest.approx(list(found.vectors @ asked.vectors[0]))
            assert answer.order == sorted(range(len(texts)), key=lambda place: -answer.scores[place])
            assert answer.truncated == [place for place, text in enumerate(texts) if len(text) > 40]
        model = each.models[0]
        assert (model.model, model.score_type, model.truncation.windows) == ("encode:a/e", "cosine", None)
    distinct = sum(
        len(
            {
                collection.documents[doc]
                for row in report.runs[collection.name][0].ranked.values()
                for doc in row
            }
        )
        for collection in plan.collections
    )
    assert (
        scorer.calls["encode", "False"] == distinct
    )  # every text once, though it is a candidate of several queries
    again = WordScorer(cut=40)
    assert (await measure(given, again)).as_dict() == report.as_dict() and not again.calls


async def test_kept_vectors_are_bounded(plan: Plan) -> None:
    scorer = WordScorer()
    own = CosineScorer(scorer, kept_bytes=1500)  # two or three texts
    for _ in range(2):
        answer = await own.score("a/e", "river", ["river stone", "apple", "river", "cloud river"], {})
        assert answer.order[0] == 2
    assert scorer.calls["encode", "False"] > 4
    await own.score("a/e", "river", ["cloud river"], {})
    assert scorer.calls["encode", "False"] <= 8


async def test_files_have_the_same_numbers_for_other_tools(plan: Plan, tmp_path: Path) -> None:
    report: Report = await measure(plan, WordScorer(cut=40))
    paths = {path.name: path for path in report.write(tmp_path / "report")}
    assert paths["quality.png"].read_bytes().startswith(b"\x89PNG")
    figures = json.loads(paths["report.json"].read_bytes())
    run = list(ir_measures.read_trec_run(str(paths["two--a%2Fy@fast.trec"])))
    qrels = [
        ir_measures.Qrel(query, document, grade)
        for query, grades in plan.collections[1].grades.items()
        for document, grade in grades.items()
    ]
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.AP], qrels, run)
    found = {change["metric"]: change["after"] for change in figures["sets"][1]["models"][1]["changes"]}
    assert found["ndcg@10"] == pytest.approx(measured[ir_measures.nDCG @ 10])
    assert found["map"] == pytest.approx(measured[ir_measures.AP])


async def test_equal_scores_keep_their_order_in_a_run(plan: Plan, tmp_path: Path) -> None:
    class Equal(WordScorer):
        async def score(self, *given: Any) -> Any:
            answer = await super().score(*given)
            return type(answer)(answer.order, [0.5] * len(answer.order), [], False, "logit", 0.0, 1.0)

    report = await measure(plan, Equal())
    report.write(tmp_path / "report")
    lines = (tmp_path / "report/runs/one--a%2Fx.trec").read_text().splitlines()[:12]
    scores = [float(line.split()[4]) for line in lines]
    assert all(one > two for one, two in pairwise(scores)) and scores[-1] > 0.499


async def test_the_queries_that_changed_most_are_shown_with_their_texts(plan: Plan) -> None:
    report = await measure(plan, WordScorer())
    model = report.sets[0].models[0]
    gains = [change.after - change.before for change in model.gained]
    losses = [change.before - change.after for change in model.lost]
    assert gains == sorted(gains, reverse=True) and losses == sorted(losses, reverse=True)
    assert min(*gains, *losses) > 0 and len(gains) <= MOST_CHANGED
    first, collection = model.lost[0], plan.collections[0]
    assert (
        first.text == collection.queries[first.query] and first.first_after in collection.documents.values()
    )
    text = report.markdown()
    assert first.text in text and "mean of ndcg@10" in text and "14 queries are few" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a/b", ("a/b", {}, "a/b")),
        ("a/b:law", ("a/b:law", {}, "a/b")),
        ("a/b@fast", ("a/b", {"profile": "fast"}, "a/b")),
        ("a/b:law@fast=/dir@x:y", ("a/b:law", {"profile": "fast"}, "a/b=/dir@x:y")),
        ("odd:one@2", ("odd:one@2", {}, "odd:one@2")),
        ("encode:a/b", ("a/b", {}, "a/b")),
        ("encode:a/b:law=/dir", ("a/b:law", {}, "a/b=/dir")),
        ("encode:own", ("encode:own", {}, "encode:own")),
    ],
)
def test_values_of_models(value: str, expected: tuple[str, dict[str, str], str]) -> None:
    system = parse_system(value, known=["odd:one@2", "encode:own"])
    assert (system.model, system.options, system.configured) == expected


@pytest.mark.parametrize("value", ["", "@fast", "a/b@", "a/b:", ":law", "a/b=", "encode:", "encode:=/dir"])
def test_incomplete_values_of_models_are_refused(value: str) -> None:
    with pytest.raises(OfflineError, match="expected ID, ID:ADAPTER, ID@PROFILE"):
        parse_system(value)


@pytest.mark.parametrize("value", ["encode:a/b@fast", "encode:encode:a/b"])
def test_models_of_vectors_have_no_profiles(value: str) -> None:
    with pytest.raises(OfflineError, match="expected encode:ID or encode:ID:ADAPTER"):
        parse_system(value)


def test_a_source_holds_for_all_systems_of_a_model() -> None:
    assert configured(["a", "b", "a=/x", "a", "a=/x"]) == ("a=/x", "b")
    with pytest.raises(OfflineError, match="'a' has two sources, '/x' and '/y'"):
        configured(["a=/x", "a=/y"])


def test_a_model_given_twice_is_refused() -> None:
    with pytest.raises(OfflineError, match="twice"):
        parse_systems(["a/b", "a/b"])


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_measures", None)
    done = CliRunner().invoke(
        cli, ["eval", "--data", str(write_beir(tmp_path / "d")), "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 1 and "extra `eval` (ir_measures is missing)" in done.output
    assert "./packages/sie-server[eval]" in done.output and len(done.output.splitlines()) == 1
