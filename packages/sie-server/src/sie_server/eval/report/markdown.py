"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sie_server.eval.report.stages import stage_rows, stages_of
from sie_server.eval.results import ModelResult, QueryChange, SetResult
from sie_server.eval.statistics import Change

SHORT = 90  # characters of a text in a table


def markdown(
    sets: Sequence[SetResult],
    metrics: Sequence[str],
    test: str,
    depth: int,
    concurrency: int,
    compare_dtype: str | None = None,
) -> str:
    """Return tables of all sets, and the queries that changed most."""
    names = {"randomisation": "paired randomisation test", "t": "paired t test"}
    parts = [
        "# Evaluation\n",
        f"Up to {depth} candidates per query are reranked. The difference is that to the first stage, with the 95 % "
        f"bootstrap interval over queries; p is that of a two-sided {names[test]}. Wins, ties and losses are queries. "
        f"Latency is the time of one request with all candidates of a query; requests at a time: {concurrency}.\n",
    ]
    if len(sets) > 1:
        parts.append(_table(_mean_header(sets, metrics), _mean_rows(sets, metrics)))
    for each in sets:
        parts += _set(each, compare_dtype)
    return "\n".join(parts)


def _set(each: SetResult, compare_dtype: str | None) -> Iterator[str]:
    yield f"## {each.name}\n"
    yield f"{each.queries:,} queries, {each.documents:,} documents, first stage {each.first_stage}.\n"
    for note in each.notes:
        yield f"- {_cell(note, 1000)}\n"
    header = (
        "model",
        "metric",
        "before",
        "after",
        "difference",
        "95 % interval",
        "p",
        "wins / ties / losses",
    )
    yield _table(
        header, [(model.model, *_figures(change)) for model in each.models for change in model.changes]
    )
    costs: tuple[str, ...] = (
        "model",
        "p50",
        "p95",
        "pairs/s",
        "truncated pairs",
        "queries with them",
        "in windows",
    )
    if compare_dtype:
        costs = (*costs, f"in {compare_dtype}")
    yield _table(costs, [_costs(model, compare_dtype) for model in each.models])
    for model in each.models:
        if model.stages:
            yield f"### {model.model}: stages\n"
            yield _table(*stages_of(model))
            yield _table(*stage_rows(model, each.models))
    for model in each.models:
        yield from _queries(model)


def _figures(change: Change) -> tuple[str, ...]:
    return (
        change.metric,
        f"{change.before:.4f}",
        f"{change.after:.4f}",
        f"{change.difference:+.4f}",
        interval(change),
        f"{change.p:.4f}",
        f"{change.wins} / {change.ties} / {change.losses}",
    )


def interval(change: Change) -> str:
    """Return the interval of a difference."""
    return f"{change.low:+.4f} … {change.high:+.4f}"


def windows(model: ModelResult) -> str:
    """Return the quality that truncation costs: by how much the model is better if it reads documents in windows."""
    found = model.truncation.windows
    if found is None:
        return "not measured" if model.truncation.documents else "–"
    return f"{_gain(found)} on these queries"


def _gain(found: Change) -> str:
    return f"{found.difference:+.4f} ({interval(found)}) of {found.metric}"


def _other_format(model: ModelResult) -> str:
    if model.other_format is None:
        return "–"
    tau = "" if model.other_format_tau is None else f"; Kendall's τ {model.other_format_tau:.3f}"
    return f"{_gain(model.other_format)}{tau}"


def _costs(model: ModelResult, compare_dtype: str | None) -> tuple[str, ...]:
    other = (_other_format(model),) if compare_dtype else ()
    share = model.truncation.documents / max(model.pairs, 1)
    return (
        model.model,
        f"{model.latency_p50_ms:.1f} ms",
        f"{model.latency_p95_ms:.1f} ms",
        f"{model.pairs_per_s:,.0f}",
        f"{share:.1%}",
        str(model.truncation.queries),
        windows(model),
        *other,
    )


def _queries(model: ModelResult) -> Iterator[str]:
    header = ("query", "before", "after", "first before", "first after")
    for title, found in (("gained", model.gained), ("lost", model.lost)):
        if found:
            yield f"### {model.model}: queries that {title} most, by {model.changes[0].metric}\n"
            yield _table(header, [_query(each) for each in found])


def _query(each: QueryChange) -> tuple[str, ...]:
    texts = (each.first_before, each.first_after)
    return (each.text, f"{each.before:.3f}", f"{each.after:.3f}", *texts)


def _mean_header(sets: Sequence[SetResult], metrics: Sequence[str]) -> tuple[str, ...]:
    return (f"mean of {metrics[0]}", *(each.name for each in sets), "mean")


def _mean_rows(sets: Sequence[SetResult], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    first = metrics[0]
    rows = [(sets[0].first_stage, [each.before[first] for each in sets])]
    for place, model in enumerate(sets[0].models):
        rows.append((model.model, [each.models[place].changes[0].after for each in sets]))
    return [
        (name, *(f"{v:.4f}" for v in values), f"{sum(values) / len(values):.4f}") for name, values in rows
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str, most: int = SHORT) -> str:
    """Return a text in one line, shortened, without characters that would end a cell or start markup."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[:most]}…"
    for mark in "\\|`*_<[":
        line = line.replace(mark, f"\\{mark}")
    return line
