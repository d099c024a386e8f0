"""The tables of docs/scale.md, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.scale.capacity import DOCUMENTS, PRICED, RATES, REPLICAS, plan
from bench.scale.scenarios import (
    BULK_SHARE,
    COUNTS,
    LOADS,
    Latencies,
    Scenario,
    batches,
    bounds,
    ingresses,
    on_a_gpu,
    rules,
)

MOST_P99 = 3.0  # service times: the goal that the planning load follows from
MEDIA = ("JSON", "msgpack")
Results = dict[Scenario, Latencies]


@dataclass(frozen=True)
class Simulated:
    """The results of a simulation, and the arguments that reproduce them."""

    requests: int
    seed: int
    results: Results


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latency_table(results: Results) -> str:
    """Return p50, p95 and p99 of the grid: a row per cluster, a column per load."""
    rows = []
    for share in (0.0, BULK_SHARE):
        for replicas in COUNTS:
            for split in (False, True)[: 1 + (replicas > 1)]:
                found = [results[Scenario(load, replicas, split, share)] for load in LOADS]
                cells = [f"{one.p50:.1f} / {one.p95:.1f} / {one.p99:.1f}" for one in found]
                rows.append([f"{share:.0%}", str(replicas), "yes" if split else "no", *cells])
    return table(["bulk", "replicas", "split", *(f"load {load:g}" for load in LOADS)], rows)


def study_tables(results: Results) -> dict[str, str]:
    """Return the tables of the other scenarios, by the name of their block."""
    return {
        "rules": _study(
            results,
            rules(),
            ["bulk", "rule", "ingress processes", "time between reports"],
            lambda s: [f"{s.bulk_share:.0%}", s.rule, str(s.ingresses), _times(s.report)],
        ),
        "bounds": _study(results, bounds(), ["bound"], lambda s: [_times(s.bound)]),
        "batches": _study(results, batches(), ["tokens per batch"], lambda s: [f"{s.batch_tokens:,}"]),
        "gpu": _study(
            results,
            on_a_gpu(),
            ["rule", "time between reports", "bound"],
            lambda s: [s.rule, _times(s.report), _times(s.bound)],
        ),
        "ingress": _study(
            results,
            ingresses(),
            ["CPU time in the ingress", "ingress processes", "load of each"],
            lambda s: [
                _times(s.ingress_share),
                str(s.ingresses),
                f"{s.ingress_share * s.load * s.replicas / s.ingresses:.2f}",
            ],
        ),
    }


def _study(results: Results, scenarios: list[Scenario], heads: list[str], cells: Any) -> str:
    found = [(cells(scenario), results[scenario]) for scenario in scenarios]
    rows = [
        [*first, f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f} ± {one.p99_error:.2f}"]
        for first, one in found
    ]
    return table([*heads, "p50", "p95", "p99"], rows)


def _times(value: float) -> str:
    return f"{value:g} ×"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def planning_load(results: Results, replicas: int) -> float:
    """Return the highest simulated load at which p99 is at most `MOST_P99`, for the next smaller cluster."""
    known = max(count for count in COUNTS if count <= replicas)
    return max(load for load in LOADS if results[Scenario(load, known)].p99 <= MOST_P99)


def capacity_table(results: Results) -> str:
    """Return replicas and cost for each rate."""
    rows = []
    for rate in RATES:
        for replica in REPLICAS:
            one = plan(replica, rate, lambda count: planning_load(results, count))
            rows.append(
                [
                    f"{rate:,}",
                    replica.model,
                    f"{replica.machine}: {replica.pairs_per_second:,.0f} pairs/s ({replica.source})",
                    f"{one.replicas:,}",
                    f"{one.load:.2f}",
                    _seconds(MOST_P99 * DOCUMENTS / replica.pairs_per_second),
                    f"{one.dollars_per_hour:,.2f}",
                    f"{one.dollars_per_million:.2f}",
                ]
            )
    heads = [
        "requests/s",
        "model",
        "one replica",
        "replicas",
        "load",
        "$ per hour",
        "$ per million documents",
    ]
    return table(heads, rows)


def price_table() -> str:
    """Return the machines and their prices."""
    prices = {replica.instance: (replica.machine, replica.price) for replica in REPLICAS}
    rows = [[f"`{name}`", machine, f"{price:.5f}", PRICED] for name, (machine, price) in prices.items()]
    return table(["instance (AWS, us-east-1, on demand)", "one replica per", "$ per hour", "price of"], rows)


def planning_table(results: Results) -> str:
    rows = [[str(count), f"{planning_load(results, count):g}"] for count in COUNTS]
    return table(["replicas", f"highest load with p99 ≤ {MOST_P99:g} service times"], rows)


def ingress_ms(cpu_ms: dict[str, float], media: str) -> float:
    """Return the CPU milliseconds of a request in an ingress process, without Ray's own work."""
    carried = cpu_ms["cloudpickle request"] + cpu_ms["unpickle answer"]
    return cpu_ms[f"HTTP and decode {media}"] + carried + cpu_ms[f"encode {media}"]


def cost_table(measured: dict[str, Any]) -> str:
    """Return the CPU time of a request outside the model, by step."""
    cpu, size = measured["cpu_ms"], measured["bytes"]
    rows = [
        [step, f"{cpu[step.format('JSON')]:.3f}", f"{cpu[step.format('msgpack')]:.3f}"]
        for step in ("HTTP and decode {}", "decode {}", "encode {}")
    ]
    rows = [[row[0].format("").strip(), *row[1:]] for row in rows]
    for step in (
        "pickle request",
        "cloudpickle request",
        "unpickle request",
        "pickle answer",
        "cloudpickle answer",
    ):
        rows.append([step, *2 * [f"{cpu[step]:.3f}"]])
    rows.append(["unpickle answer", *2 * [f"{cpu['unpickle answer']:.3f}"]])
    totals = [ingress_ms(cpu, media) for media in MEDIA]
    rows.append(["**one request in the ingress**", *(f"**{total:.2f}**" for total in totals)])
    rows.append(["requests/s per core", *(f"{1e3 / total:,.0f}" for total in totals)])
    rows.append(
        [
            "bytes of the request, answer",
            *(f"{size[f'request {m}']:,}, {size[f'answer {m}']:,}" for m in MEDIA),
        ]
    )
    return table(["CPU milliseconds", "JSON", "msgpack"], rows) + f"\n{machine_note(measured)}.\n"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def bottleneck_table(measured: dict[str, Any]) -> str:
    """Return the load on ingress and network for each rate."""
    size, cpu = measured["bytes"], ingress_ms(measured["cpu_ms"], "JSON")
    outside = size["request JSON"] + size["answer JSON"]
    inside = size["pickled request"] + size["pickled answer"]
    rows = [
        [
            f"{rate:,}",
            f"{rate * DOCUMENTS:,}",
            _rounded(rate * cpu / 1e3),
            _rounded(rate * outside * 8 / 1e6),
            _rounded(rate * (outside + inside) * 8 / 1e6),
        ]
        for rate in RATES
    ]
    heads = [
        "requests/s",
        "pairs/s",
        "ingress cores",
        "Mbit/s with the clients",
        "Mbit/s through the ingress hosts",
    ]
    return table(heads, rows)


def validation_table(found: dict[str, Any]) -> str:
    """Return measured and simulated latencies of a server."""
    names = ("measured_p50", "simulated_p50", "measured_p95", "simulated_p95")
    rows = [
        [f"{row['load']:g}", str(row["requests"]), *(f"{row[name]:,}" for name in names)]
        for row in found["rows"]
    ]
    heads = ["load", "requests", "p50 measured, ms", "simulated", "p95 measured, ms", "simulated"]
    others = f"other programs used {found['other_cores']:g} cores"
    return table(heads, rows) + f"\n{machine_note(found)}; {others}.\n"


def run_note(simulated: Simulated) -> str:
    return (
        f"{len(simulated.results)} scenarios of {simulated.requests:,} interactive requests each, seed "
        f"{simulated.seed}.\n"
    )


def machine_note(found: dict[str, Any]) -> str:
    """Return where and when something was measured."""
    machine = found["machine"]
    kind = (
        "AMX" if machine["amx_bf16"] else "AVX512-BF16" if machine["avx512_bf16"] else "no bf16 instructions"
    )
    return f"{machine['cores']} cores, {machine['cpu']}, {kind}; recorded {found['recorded']}"


def ready_note(measured: dict[str, Any]) -> str:
    return (
        f"A plain server with the embedded model was ready {measured['ready_s']:g} s after its start, with "
        f"{measured['resident_mib']} MiB of resident memory ({machine_note(measured)}).\n"
    )
