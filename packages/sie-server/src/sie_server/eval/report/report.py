"""The report of an evaluation, as an object for notebooks and as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sie_server import __version__
from sie_server.eval.first_stage import Candidates
from sie_server.eval.report.markdown import markdown
from sie_server.eval.report.plot import draw
from sie_server.eval.report.runs import write_run
from sie_server.eval.results import Scored, SetResult
from sie_server.offline.errors import OfflineError

Runs = Mapping[str, tuple[Candidates, Sequence[Scored]]]  # by set


@dataclass(frozen=True)
class Report:
    """The figures of all sets and models."""

    first_stage: str
    depth: int
    metrics: list[str]
    test: str
    seed: int
    concurrency: int
    compare_dtype: str | None
    sets: list[SetResult]
    runs: Runs = field(repr=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one flat row per set, model and metric, for tables such as pandas'."""
        for each in self.sets:
            for model in each.models:
                for change in model.changes:
                    yield {
                        "set": each.name,
                        "queries": each.queries,
                        "model": model.model,
                        **msgspec.structs.asdict(change),
                        "p50_ms": model.latency_p50_ms,
                        "p95_ms": model.latency_p95_ms,
                        "pairs_per_s": model.pairs_per_s,
                        "truncated": model.truncation.documents / max(model.pairs, 1),
                    }

    def as_dict(self) -> dict[str, Any]:
        """Return everything except the rankings, as JSON holds it."""
        names = ("first_stage", "depth", "metrics", "test", "seed", "concurrency", "compare_dtype")
        settings = {name: getattr(self, name) for name in names}
        return {"version": __version__, **settings, "sets": msgspec.to_builtins(self.sets)}

    def markdown(self) -> str:
        """Return the report as text."""
        return markdown(self.sets, self.metrics, self.test, self.depth, self.concurrency, self.compare_dtype)

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def plot(self, path: str | Path) -> None:
        """Write a plot of quality against latency. Raises OfflineError without matplotlib."""
        draw(self.sets, self.metrics[0], Path(path))

    def write(self, out: str | Path) -> list[Path]:
        """Write report.json, report.md, quality.png and the runs; return the paths.

        Raises:
            OfflineError: the directory cannot be written.
        """
        out = Path(out)
        try:
            return list(self._write(out))
        except OSError as error:
            raise OfflineError(f"cannot write the report to {out}: {error.strerror or error}") from None

    def _write(self, out: Path) -> Iterator[Path]:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(self.as_dict())) + b"\n"
        (out / "report.json").write_bytes(text)
        yield out / "report.json"
        (out / "report.md").write_text(self.markdown(), encoding="utf-8")
        yield out / "report.md"
        self.plot(out / "quality.png")
        yield out / "quality.png"
        for name, (candidates, scored) in self.runs.items():
            yield write_run(out / "runs", name, candidates, None)
            for each in scored:
                yield write_run(out / "runs", name, candidates, each)
