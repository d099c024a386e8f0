"""`sie-server calibrate` with a real model, and requests for the probabilities of its profile."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from starlette.testclient import TestClient

from sie_server.catalog import Calibration
from sie_server.cli.commands import cli
from support.checkpoints.cross_encoders import make_cross_encoder
from support.judged import WORDS
from support.servers.inprocess import ask, asking, in_order

MODEL, OTHER = "toy/one", "toy/two"
QUERY = "what grows in the garden"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models directory with two models, and judgments that agree with the scores of one, mostly."""
    root = tmp_path_factory.mktemp("calibration")
    for seed, name in enumerate((MODEL, OTHER)):
        make_cross_encoder(root / "models" / name, "bert", seed=seed)
    words = random.Random(0)
    judged = []
    with asking({}, models_dir=str(root / "models"), models_dir_poll_s=0) as client:
        for number in range(30):
            query, texts = f"{QUERY} {number}", [" ".join(words.choices(WORDS, k=4)) for _ in range(8)]
            raw = in_order(ask(client, MODEL, query, texts, normalize="none"))
            middle = sorted(raw)[4]
            judged += [
                {"query": query, "text": text, "grade": int((score >= middle) != (words.random() < 0.1))}
                for text, score in zip(texts, raw, strict=True)
            ]
    (root / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    """Calibrate a model into the models directory, then serve it."""
    done = CliRunner().invoke(
        cli,
        [
            *("calibrate", MODEL, f"--data={root / 'judged.jsonl'}", "--first-stage=judged", "--recall=0.8"),
            *(f"--models-dir={root / 'models'}", "--dtype=float32", "--offline", f"--out={root / 'out'}"),
        ],
    )
    assert done.exit_code == 0, done.output
    figures = {row.split("\t")[0]: row.split("\t")[1:] for row in done.stdout.splitlines()}
    assert figures["pairs"][0] == "240" and figures["queries"][0] == "30"
    assert float(figures["recall"][0]) >= 0.8
    assert float(figures["recall"][1]) <= float(figures["recall"][0]) <= float(figures["recall"][2])
    assert float(figures["Brier after"][0]) < float(figures["Brier before"][0])
    assert (root / "out/reliability.png").read_bytes().startswith(b"\x89PNG")
    with asking({}, models_dir=str(root / "models"), models_dir_poll_s=0) as client:
        yield client


def calibration(root: Path) -> Calibration:
    entry = yaml.safe_load((root / "models/toy--one.yaml").read_text())
    assert (entry["id"], entry["source"]) == (MODEL, MODEL)  # relative to the models directory
    assert entry["profiles"] == {"calibrated": {"normalize": "calibrated"}}
    return msgspec.convert(entry["calibration"], Calibration)


def test_a_profile_answers_with_probabilities_in_the_same_order(client: TestClient, root: Path) -> None:
    raw = ask(client, MODEL, QUERY, list(WORDS), normalize="none")
    found = ask(client, MODEL, QUERY, list(WORDS), profile="calibrated", return_logits=True)
    assert (raw["score_type"], found["score_type"]) == ("logit", "probability")
    assert [e["item_id"] for e in found["scores"]] == [e["item_id"] for e in raw["scores"]]
    assert in_order(found, "logit") == in_order(raw)
    expected = [calibration(root).probability(score) for score in in_order(raw)]
    assert in_order(found) == pytest.approx(expected, abs=1e-12)
    assert ask(client, MODEL, QUERY, list(WORDS), normalize="calibrated")["scores"] == [
        {key: value for key, value in entry.items() if key != "logit"} for entry in found["scores"]
    ]


def test_requests_without_the_profile_are_unchanged(client: TestClient, root: Path) -> None:
    with asking({MODEL: root / "models" / MODEL}) as plain:
        for options in ({}, {"normalize": "sigmoid"}, {"profile": "default"}):
            answers = [ask(each, MODEL, QUERY, list(WORDS), **options) for each in (client, plain)]
            assert answers[0] == answers[1]


def test_requests_that_the_calibration_does_not_fit_are_refused(client: TestClient) -> None:
    for model, options, said in (
        (OTHER, {}, "has no calibration; make one with `sie-server calibrate`"),
        (MODEL, {"lora": "law"}, "law"),
        (MODEL, {"cutoff_layer": 1}, "made with other scores"),
    ):
        status = 404 if "lora" in options else 400
        error = ask(client, model, QUERY, ["a"], status, normalize="calibrated", **options)["error"]
        assert said in error["message"]
    assert (
        "no profile 'calibrated'"
        in ask(client, OTHER, QUERY, ["a"], 400, profile="calibrated")["error"]["message"]
    )


def test_unusable_requests_for_a_calibration_are_named(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text('{"query": "q", "text": "x", "grade": 1}\n')
    args = [
        f"--models-dir={root / 'models'}",
        "--offline",
        f"--out={tmp_path / 'out'}",
        "--first-stage=judged",
    ]
    for given, code, said in (
        ([MODEL, f"--data={data}"], 1, "one class only"),
        ([f"{MODEL}:law", f"--data={data}"], 1, "without an adapter"),
        ([f"encode:{MODEL}", f"--data={data}"], 1, "of scores, not of vectors"),
        ([MODEL, f"--data={data}", "--recall=.5", "--precision=.5"], 2, "exclude each other"),
        ([MODEL, f"--data={tmp_path / 'gone'}"], 1, "does not exist"),
    ):
        done = CliRunner().invoke(cli, ["calibrate", *given, *args])
        assert (done.exit_code, said in done.output) == (code, True), done.output
