"""`sie-server eval` with real models: in this process, at an endpoint, killed, and with an endpoint that goes away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForSequenceClassification

from sie_server.cli.commands import cli
from sie_server.config import ServerConfig
from sie_server.eval import evaluate
from support import rank_metrics
from support.checkpoints.encoders import make_bge_m3
from support.families.adapters import make_adapter
from support.judged import write_beir
from support.servers import processes
from support.servers.processes import Server

QUERIES, DEPTH = 60, 20
MODEL = "toy/bert"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beir(tmp_path_factory.mktemp("judged") / "words", queries=QUERIES, documents=40)


@pytest.fixture(scope="module")
def command(data: Path) -> list[str]:
    return ["eval", f"--data={data}", f"--model={MODEL}", f"--depth={DEPTH}"]


def evaluated(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


def figures(out: Path) -> dict[str, Any]:
    """Return the report without its times."""
    report: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    for each in report["sets"]:
        for model in each["models"]:
            assert model.pop("latency_p50_ms") > 0 and model.pop("latency_p95_ms") > 0
            assert model.pop("pairs_per_s") > 0
    return report


@pytest.fixture(scope="module")
def expected(command: list[str], server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of an evaluation that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    done = evaluated(*command, f"--endpoint={server.base_url}", f"--out={out}")
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows] == [["words", MODEL, name] for name in figures(out)["metrics"]]
    return figures(out)


def test_figures_are_those_of_the_servers_rankings(
    expected: dict[str, Any], server: Server, data: Path
) -> None:
    grades: dict[str, dict[str, int]] = {}
    for line in (data / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        grades.setdefault(query, {})[document] = int(grade)
    run = data.parent / "run.trec"
    run.write_text("".join(f"q0 Q0 {document} 0 1 t\n" for document in grades["q0"]))
    out = data.parent / "from-run"
    done = evaluated(
        *("eval", f"--data={data}", f"--model={MODEL}", f"--first-stage={run}", "--metrics=ndcg@10"),
        *(f"--endpoint={server.base_url}", f"--out={out}"),
    )
    assert done.exit_code == 0, done.output
    written = (out / "runs/words--toy%2Fbert.trec").read_text().splitlines()
    ranking = [line.split()[2] for line in written]
    assert sorted(ranking) == sorted(grades["q0"])
    value = json.loads((out / "report.json").read_bytes())["sets"][0]["models"][0]["per_query"]["ndcg@10"]
    assert value["q0"] == pytest.approx(rank_metrics.ndcg(ranking, grades["q0"], 10))
    assert value["q1"] == 0 and "59 queries are not in the run" in done.stderr


def test_in_this_process_the_figures_are_the_same(
    command: list[str], expected: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = [f"--models-dir={models}", "--dtype=float32", "--offline", f"--out={out}"]
    done = evaluated(*command, *args)
    assert done.exit_code == 0, done.output
    assert figures(out) == expected


def wait_for(count: int, out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `count` queries are finished, or the process ends."""
    deadline = time.monotonic() + 60
    while len(scored(out)) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def scored(out: Path) -> list[str]:
    """Return the keys of the finished queries, of whole lines only."""
    found = list(out.glob("scores/*.jsonl"))
    lines = found[0].read_text().splitlines(keepends=True)[1:] if found else []
    return [json.loads(line)["key"] for line in lines if line.endswith("\n")]


def start(command: list[str], *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sie_server", *command, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_three_times_and_resumed_the_table_is_the_same(
    command: list[str], expected: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = [f"--endpoint={server.base_url}", f"--out={out}"]
    finished = 0
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = start(command, *args)
        wait_for(finished + 4, out, process)
        process.send_signal(number)
        _, said = process.communicate()
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted; start the same command again, and it resumes" in said
        assert finished < len(scored(out)) < QUERIES  # it was killed in the middle
        finished = len(scored(out))
    done = evaluated(*command, *args)
    assert done.exit_code == 0, done.output
    assert f"{QUERIES} of {QUERIES}, {finished} of them by an earlier run" in done.stderr
    keys = scored(out)
    assert len(keys) == len(set(keys)) == QUERIES
    assert figures(out) == expected


def test_an_endpoint_that_goes_away_ends_the_command_and_the_next_one_resumes(
    command: list[str], expected: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    serve = ["--models-dir", str(models), "--dtype", "float32", "--batch-tokens", "2048"]
    with processes.running(tmp_path, *serve) as first:
        process = start(command, f"--endpoint={first.base_url}", f"--out={out}", "--deadline=1")
        wait_for(4, out, process)
        first.process.kill()
        _, said = process.communicate()
        first.process.wait(30)
    finished = len(scored(out))
    assert process.returncode == 1 and finished < QUERIES
    assert "start the same command again when the endpoint is back" in said and "Traceback" not in said
    with processes.running(tmp_path, *serve) as second:
        done = evaluated(*command, f"--endpoint={second.base_url}", f"--out={out}")
    assert done.exit_code == 0 and f"{finished} of them by an earlier run" in done.stderr
    assert figures(out) == expected


def test_models_that_cannot_score_and_unknown_ones_are_named(
    data: Path, server: Server, tmp_path: Path
) -> None:
    for model, said in (("toy/encoder", "score"), ("toy/gone", "toy/gone"), (f"{MODEL}@fast", "fast")):
        args = ["eval", f"--data={data}", f"--model={model}", f"--out={tmp_path / 'out'}"]
        done = evaluated(*args, f"--endpoint={server.base_url}")
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
        assert said in done.stderr.splitlines()[-1]
        assert not list((tmp_path / "out").glob("scores/*"))
    args = ["eval", f"--data={data}", "--model=encode:toy/encoder", f"--out={tmp_path / 'out'}"]
    done = evaluated(*args, f"--endpoint={server.base_url}", "--queries=3")
    assert done.exit_code == 0 and "encode:toy/encoder\tndcg@10" in done.stdout, done.output


def test_adapters_profiles_and_vectors_of_models_in_this_process(
    data: Path, models: Path, tmp_path: Path
) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(models / MODEL)
    adapter = make_adapter(base, tmp_path / "law", target_modules=["query", "value"])
    names = ("a/x", "a/x:law", "BAAI/bge-m3", "BAAI/bge-m3@dense", "encode:a/encoder")
    report = evaluate(
        data,
        [
            f"a/x={models / MODEL}",
            "a/x:law",
            f"BAAI/bge-m3={make_bge_m3(tmp_path / 'm3')}",
            "BAAI/bge-m3@dense",
            "encode:a/encoder",
        ],
        first_stage=f"encode:a/encoder={models / 'toy/encoder'}",
        queries=4,
        compare_dtype="bfloat16",
        depth=6,
        # a load may take longer than requests wait for one
        config=ServerConfig(dtype="float32", offline=True, load_wait_s=0, adapter=(f"a/x:law={adapter}",)),
    )
    assert report.sets[0].first_stage == "a/encoder"
    candidates, found = report.runs["words"]
    scored = list(found)
    assert tuple(each.name for each in scored) == names
    for query, answer in scored.pop().answers.items():  # the model of the first stage confirms its order
        assert answer.order == list(range(6))
        assert answer.scores == pytest.approx(candidates.scores[query], abs=1e-5)
    plain, law, mixed, dense = ([answer.scores for answer in each.answers.values()] for each in scored)
    assert plain != law and mixed != dense
    kinds = [model.score_type for model in report.sets[0].models]
    assert all(model.other_format is not None for model in report.sets[0].models)
    assert kinds == ["probability", "probability", "maxsim", "cosine", "cosine"]
