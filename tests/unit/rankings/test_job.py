"""Jobs with a scorer that needs no model: formats, resuming, and outputs that are refused."""

from __future__ import annotations

import csv
import errno
import json
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sie_server.cli.commands import cli
from sie_server.cli.score_files import reproducible
from sie_server.config import ServerConfig
from sie_server.eval import OfflineError
from sie_server.eval.data.trec import read_run
from sie_server.eval.systems import parse_system
from sie_server.rankings.inputs import read_inputs
from sie_server.rankings.job import Job, Summary, check_out, rank
from support.judged import WORDS, WordScorer

QUERIES, DOCUMENTS = 9, 6


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a job whose queries rank all documents."""
    rows = [{"id": f"q{i}", "text": f"{WORDS[i]} {i}"} for i in range(QUERIES)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"d{i}", "text": " ".join(WORDS[: i + 1])} for i in range(DOCUMENTS)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Job(tmp_path / "q.jsonl", tmp_path / "out.jsonl", tmp_path / "d.jsonl")


async def carried_out(job: Job, scorer: WordScorer, model: str = "a/x") -> Summary:
    check_out(job.out)
    inputs = read_inputs(job.queries, job.docs, job.candidates, job.depth)
    return await rank(job, parse_system(model), inputs, scorer)


async def test_the_formats_have_the_same_rankings(job: Job) -> None:
    for end in (".jsonl", ".csv", ".trec"):
        await carried_out(replace(job, out=job.out.with_suffix(end)), WordScorer())
    lines = [json.loads(line) for line in job.out.read_text().splitlines()]
    assert [line["query_id"] for line in lines] == [f"q{i}" for i in range(QUERIES)]
    ranked = {line["query_id"]: [each["item_id"] for each in line["scores"]] for line in lines}
    with job.out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    run = read_run(job.out.with_suffix(".trec"))
    for line in lines:
        scores = [each["score"] for each in line["scores"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == DOCUMENTS
        own = [row for row in rows if row["query_id"] == line["query_id"]]
        assert [row["item_id"] for row in own] == ranked[line["query_id"]]
        assert [float(row["score"]) for row in own] == scores
        assert (
            [int(row["rank"]) for row in own]
            == [each["rank"] for each in line["scores"]]
            == list(range(DOCUMENTS))
        )
        assert (
            sorted(run[line["query_id"]], key=lambda name: -run[line["query_id"]][name])
            == ranked[line["query_id"]]
        )
    assert not list(job.out.parent.glob("*.journal")) and not list(job.out.parent.glob("*.new"))


@pytest.mark.parametrize("end", [".jsonl", ".csv", ".trec"])
async def test_interrupted_three_times_the_output_is_the_same_and_nothing_is_scored_twice(
    job: Job, end: str
) -> None:
    whole = replace(job, out=job.out.with_name(f"whole{end}"))
    first = WordScorer()
    await carried_out(whole, first)
    job = replace(job, out=job.out.with_suffix(end))
    calls = 0
    for fail_at in (3, 2, 4):
        scorer = WordScorer(fail_at)
        with pytest.raises(OfflineError, match="went away"):
            await carried_out(job, scorer)
        calls += sum(scorer.calls.values())
        assert not job.out.exists()
    last = WordScorer()
    await carried_out(job, last)
    assert calls + sum(last.calls.values()) == sum(first.calls.values()) == QUERIES
    assert job.out.read_bytes() == whole.out.read_bytes()


async def test_top_n_and_truncation(job: Job) -> None:
    done = await carried_out(replace(job, top_n=2), WordScorer(cut=20))
    lines = [json.loads(line) for line in job.out.read_text().splitlines()]
    assert all(len(line["scores"]) == 2 for line in lines)
    texts = [json.loads(line)["text"] for line in (job.docs or job.queries).read_text().splitlines()]
    long = sum(len(text) > 20 for text in texts)
    assert (done.queries, done.pairs, done.truncated) == (QUERIES, QUERIES * DOCUMENTS, QUERIES * long)
    assert {each["item_id"] for line in lines for each in line["scores"] if each.get("truncated")} <= {
        "d3",
        "d4",
        "d5",
    }


async def test_a_finished_output_and_that_of_another_job_are_refused(job: Job) -> None:
    await carried_out(job, WordScorer())
    with pytest.raises(
        OfflineError, match=r"out.jsonl exists, and its job is finished; delete it to do it anew"
    ):
        await carried_out(job, WordScorer())
    job = replace(job, out=job.out.with_name("second.csv"))
    with pytest.raises(OfflineError, match="went away"):
        await carried_out(job, WordScorer(fail_at=3))
    with pytest.raises(OfflineError, match=r"model was 'a/x' and is 'a/y'; choose another --out"):
        await carried_out(job, WordScorer(), "a/y")
    other = job.queries.with_name("other.jsonl")
    other.write_bytes(job.queries.read_bytes())
    with pytest.raises(
        OfflineError, match=r"queries was '.*q.jsonl' and is '.*other.jsonl'; choose another --out"
    ):
        await carried_out(replace(job, queries=other), WordScorer())
    scorer = WordScorer()
    await carried_out(job, scorer)
    assert sum(scorer.calls.values()) == QUERIES - 2


async def test_an_output_that_cannot_be_written_loses_nothing(job: Job) -> None:
    blocked = job.out.with_name("out.jsonl.new")
    blocked.mkdir()  # in the way of the file that becomes the output
    with pytest.raises(OfflineError, match=r"cannot write .*out.jsonl: .*nothing is scored twice"):
        await carried_out(job, WordScorer())
    blocked.rmdir()
    scorer = WordScorer()
    await carried_out(job, scorer)
    assert not scorer.calls and len(job.out.read_text().splitlines()) == QUERIES


async def test_a_full_disk_loses_only_the_query_that_did_not_fit(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[int] = []

    class SmallDisk(FileIO):
        """A file with room for three lines and ten bytes."""

        def write(self, data: Any) -> int:
            lines.append(len(data))
            if len(lines) > 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data if len(lines) < 4 else data[:10])

    monkeypatch.setattr("sie_server.offline.journal.FileIO", SmallDisk)
    with pytest.raises(
        OfflineError, match=r"No space left on device; make room, then start the same command"
    ):
        await carried_out(job, WordScorer())
    monkeypatch.undo()
    assert len(lines) == 5
    assert job.out.with_name("out.jsonl.journal").read_bytes().count(b"\n") == 3  # the torn line is gone
    scorer = WordScorer()
    await carried_out(job, scorer)
    assert sum(scorer.calls.values()) == QUERIES - 2


def test_every_start_computes_a_query_in_the_same_batches() -> None:
    config = reproducible(ServerConfig(), reuse_vectors=False)
    assert (
        config.batch_tokens > 0 and config.document_cache_mb == 0
    )  # 0 tokens: measured, other at every start
    given = reproducible(ServerConfig(batch_tokens=512, document_cache_mb=7), reuse_vectors=True)
    assert (given.batch_tokens, given.document_cache_mb) == (512, 7)


def said(*args: str) -> str:
    done = CliRunner().invoke(cli, ["score", *args])
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit), done.output
    return done.stderr.splitlines()[-1]


def test_wrong_usage_is_one_line(job: Job) -> None:
    files = [f"--queries={job.queries}", f"--docs={job.docs}"]
    out = f"--out={job.out}"
    assert "name a query with --query, or a file of queries with --queries" in said()
    assert "--query does not go together with --queries" in said(*files, out, "--query=rain")
    assert "FILE does not go together with --queries; name the files with --docs" in said(
        *files, out, "d.jsonl"
    )
    assert "--out does not go together with --query" in said("--query=rain", out)
    assert "--queries needs documents" in said(files[0], out)
    assert "--queries needs --out" in said(*files)
    assert "must end in .jsonl, .csv, .trec" in said(*files, "--out=ranking.txt")
    assert "--depth needs --candidates" in said(*files, out, "--depth=3")
    assert "is a directory" in said(*files, f"--out={job.out.parent}")
    assert "--device is for models in this process" in said(
        *files, out, "--endpoint=http://127.0.0.1:9", "--device=cpu"
    )
    (job.out.parent / "spaces.jsonl").write_text('{"id": "a b", "text": "c"}\n')
    spaces = f"--docs={job.out.parent / 'spaces.jsonl'}"
    assert "the id 'a b' has white space" in said(files[0], spaces, f"--out={job.out.with_suffix('.trec')}")
    assert not list(job.out.parent.glob("out*"))
