"""`sie-server score --queries` with real models: killed, in this process, at an endpoint, and one that goes away."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sie_server.cli.commands import cli
from support.judged import WORDS
from support.servers import processes
from support.servers.processes import Server

QUERIES, DOCUMENTS, CANDIDATES = 60, 80, 12
MODEL = "toy/bert"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write the files of a job and return its command without a place to score and without `--out`."""
    folder = tmp_path_factory.mktemp("job")
    words = random.Random(0)
    for name, count in (("q", QUERIES), ("d", DOCUMENTS)):
        rows = [
            {"id": f"{name}{i}", "text": f"{i} {' '.join(words.choices(WORDS, k=6))}"} for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = [
        f"q{i} Q0 d{document} 0 {-rank} bm25\n"
        for i in range(QUERIES)
        for rank, document in enumerate(words.sample(range(DOCUMENTS), CANDIDATES))
    ]
    (folder / "run.trec").write_text("".join(run))
    files = {"queries": "q.jsonl", "docs": "d.jsonl", "candidates": "run.trec"}
    return ["score", f"--model={MODEL}", *(f"--{name}={folder / file}" for name, file in files.items())]


def scored(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


@pytest.fixture(scope="module")
def expected(command: list[str], server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the lines of a job that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    done = scored(*command, f"--endpoint={server.base_url}", f"--out={out}")
    assert done.exit_code == 0, done.output
    assert f"{QUERIES} queries, {QUERIES * CANDIDATES} documents ranked" in done.stderr and not done.stdout
    lines = out.read_text().splitlines()
    assert [json.loads(line)["query_id"] for line in lines] == [f"q{i}" for i in range(QUERIES)]
    assert all(len(json.loads(line)["scores"]) == CANDIDATES for line in lines)
    return lines


def finished(out: Path) -> list[str]:
    """Return the keys of the whole lines of a journal."""
    path = out.with_name(f"{out.name}.journal")
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith("\n")]


def wait_for(count: int, out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `count` queries are finished, or the process ends."""
    deadline = time.monotonic() + 60
    while len(finished(out)) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sie_server", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_three_times_the_output_is_that_of_one_run(
    command: list[str], expected: list[str], server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    args = [*command, f"--endpoint={server.base_url}", f"--out={out}"]
    count = 0
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = start(*args)
        wait_for(count + 4, out, process)
        process.send_signal(number)
        _, said = process.communicate()
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted; start the same command again, and it resumes" in said
        assert count < len(finished(out)) < QUERIES and not out.exists()
        count = len(finished(out))
    keys = finished(out)
    done = scored(*args)
    assert done.exit_code == 0, done.output
    assert f"{QUERIES} of {QUERIES}, {count} of them by an earlier run" in done.stderr
    assert len(keys) == len(set(keys)) and out.read_text().splitlines() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_in_this_process_the_rankings_are_the_same(
    command: list[str], expected: list[str], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = scored(*command, f"--models-dir={models}", "--dtype=float32", "--offline", f"--out={out}")
    assert done.exit_code == 0, done.output
    lines = out.read_text().splitlines()
    # a process with other threads may round the last digit otherwise
    for own, other in zip(map(json.loads, lines), map(json.loads, expected), strict=True):
        scores = [{each["item_id"]: each["score"] for each in line["scores"]} for line in (own, other)]
        assert own["query_id"] == other["query_id"] and scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_an_endpoint_that_goes_away_ends_the_job_and_the_same_command_resumes(
    command: list[str], expected: list[str], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    serve = ["--models-dir", str(models), "--dtype", "float32", "--batch-tokens", "2048"]
    with processes.running(tmp_path, *serve) as first:
        process = start(*command, f"--endpoint={first.base_url}", f"--out={out}", "--deadline=1")
        wait_for(4, out, process)
        first.process.kill()
        _, said = process.communicate()
        first.process.wait(30)
    count = len(finished(out))
    assert process.returncode == 1 and 4 <= count < QUERIES
    assert "start the same command again when the endpoint is back" in said and "Traceback" not in said
    with processes.running(tmp_path, *serve) as second:
        done = scored(*command, f"--endpoint={second.base_url}", f"--out={out}")
    assert done.exit_code == 0 and f"{count} of them by an earlier run" in done.stderr
    assert out.read_text().splitlines() == expected


def test_models_that_cannot_score_are_named_and_leave_no_file(
    command: list[str], server: Server, tmp_path: Path
) -> None:
    for model, said in (("toy/encoder", "score"), ("toy/gone", "toy/gone"), (f"{MODEL}@fast", "fast")):
        out = f"--out={tmp_path / 'out.csv'}"
        done = scored(*command, f"--model={model}", f"--endpoint={server.base_url}", out)
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
        assert said in done.stderr.splitlines()[-1] and not list(tmp_path.iterdir())
