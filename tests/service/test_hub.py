"""Models and adapters from a model hub: a real server downloads from a local hub through `huggingface_hub`'s cache."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from support.checkpoints import cross_encoders
from support.families.adapters import make_adapter
from support.servers import hub, processes
from support.servers.hub import Hub
from support.servers.processes import Server
from support.waiting import eventually

MODEL, LARGE, LORA = "org/model", "org/large", "org/lora"
QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]
NEEDED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the hub's folder: models with more files than serving needs, and an adapter."""
    root = tmp_path_factory.mktemp("hub")
    cross_encoders.make_cross_encoder(root / MODEL, "bert", hidden_size=256, num_hidden_layers=2)
    for name in ("README.md", "modeling_model.py", "pytorch_model.bin", "onnx/model.onnx"):
        (root / MODEL / name).parent.mkdir(exist_ok=True)
        (root / MODEL / name).write_bytes(b"not needed")
    base = AutoModelForSequenceClassification.from_pretrained(root / MODEL)
    make_adapter(base, root / LORA, target_modules=["query", "value"])
    shutil.copytree(root / MODEL, root / "org/changing")
    # larger than the 10 MiB pieces in which the library writes
    cross_encoders.make_cross_encoder(root / LARGE, "bert", hidden_size=640, num_hidden_layers=4)
    return root


@pytest.fixture(scope="module")
def theirs(stored: Path) -> Iterator[Hub]:
    with hub.running(stored) as running:
        yield running


def load(server: Server, status: int = 200, **body: object) -> dict[str, object]:
    answer = server.post("/v1/admin/load", body)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


@pytest.mark.slow
def test_only_needed_files_are_downloaded_and_only_once(tmp_path: Path, theirs: Hub, stored: Path) -> None:
    theirs.sent.clear()
    flags = ["--model", MODEL, "--adapter", f"{MODEL}:laws={LORA}", "--batch-tokens", "512"]
    with processes.running(tmp_path, *flags, env={"HF_ENDPOINT": theirs.url}) as server:
        assert set(theirs.sent) == NEEDED and len(theirs.sent) == len(NEEDED)
        scores = server.scores(MODEL, QUERY, TEXTS)
        theirs.sent.clear()
        under = server.scores(f"{MODEL}:laws", QUERY, TEXTS)
        assert under != scores
        assert set(theirs.sent) == {"adapter_config.json", "adapter_model.safetensors"}
        assert "Fetching" not in server.log  # the library's progress bars, which are for terminals
    local = ["--model", f"{MODEL}={stored / MODEL}", "--batch-tokens", "512"]
    with processes.running(tmp_path, *local) as server:
        assert server.scores(MODEL, QUERY, TEXTS) == scores
    theirs.sent.clear()
    for more, env in (([], {"HF_ENDPOINT": theirs.url}), ([], {}), (["--offline"], {})):
        with processes.running(tmp_path, *flags, *more, env=env) as server:
            assert server.scores(MODEL, QUERY, TEXTS) == scores
            assert server.scores(f"{MODEL}:laws", QUERY, TEXTS) == under
            cached = not more and not env
            assert eventually(lambda: ("from the hub's cache" in server.log) == cached)  # noqa: B023
    assert theirs.sent == []


def test_progress_of_a_download_is_shown(tmp_path: Path, theirs: Hub, stored: Path) -> None:
    size = sum((stored / LARGE / name).stat().st_size for name in NEEDED)
    seen, shown, (ours, terminal) = [], b"", pty.openpty()
    os.set_blocking(ours, False)
    theirs.pause_s = 3 * hub.PIECE / size  # about 3 s
    with processes.running(tmp_path, "--batch-tokens", "512", env={"HF_ENDPOINT": theirs.url}) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "sie_server", "admin", "load", LARGE, "--source", LARGE, "--url", server.base_url],
            env=processes.environment(tmp_path, {"TERM": "xterm", "COLUMNS": "100", **server.admin_env}),
            stderr=terminal,
        )  # fmt: skip
        while process.poll() is None:
            with suppress(BlockingIOError):
                shown += os.read(ours, 65536)
            answer = server.get(f"/v1/models/{LARGE}")
            progress = answer.json().get("progress") if answer.status_code == 200 else None
            if progress and progress["phase"] == "fetch" and progress["bytes_total"]:
                seen.append((progress["bytes_done"], progress["bytes_total"]))
        theirs.pause_s = 0.0
        assert process.returncode == 0
        assert {total for _, total in seen} == {size}
        done = [done for done, _ in seen]
        assert done == sorted(done) and len(set(done)) >= 3 and done[0] < 0.5 * size and done[-1] <= size
    assert b"downloading" in shown and b"MB" in shown
    os.close(ours)
    os.close(terminal)


def test_refusals_of_the_hub_are_reported_and_cached_files_still_load(tmp_path: Path, theirs: Hub) -> None:
    with processes.running(tmp_path, "--batch-tokens", "512", env={"HF_ENDPOINT": theirs.url}) as server:
        error = load(server, 502, model="my/model", source="org/absent")["error"]
        assert "the hub has no such model, or it is private" in str(error)
        error = load(server, 502, model="my/model", source=MODEL, revision="v2")["error"]
        assert "it has no revision 'v2'" in str(error) and "--model ID@REVISION" in str(error)
        commit = theirs.commit(MODEL)
        assert load(server, model="my/model", source=MODEL, revision=commit)["revision"] == commit
        body = {"model": "my/model", "adapter": "laws", "source": "org/absent"}
        message = server.post("/v1/admin/adapters/load", body).json()["error"]["message"]
        assert "Use a local directory instead (--model ID=" in message and "--adapter MODEL:NAME=" in message


def test_only_models_and_files_are_requested(tmp_path: Path, theirs: Hub) -> None:
    """The server, the hub client and the reference libraries of `verify` send no reports."""
    theirs.requests.clear()
    named = f"{MODEL}@{theirs.commit(MODEL)}"
    done = subprocess.run(
        [sys.executable, "-m", "sie_server", "verify", named, "--pairs", "2", "--tolerance", "1e-3"],
        env=processes.environment(tmp_path, {"HF_ENDPOINT": theirs.url}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and f"{MODEL} against" in done.stdout, done.stdout + done.stderr
    assert len(theirs.requests) > len(NEEDED)
    for path, agent in theirs.requests:
        assert re.match(rf"/api/models/{MODEL}(/|\\?|$)|/{MODEL}/resolve/", path), path
        assert theirs.commit(MODEL) in path, path  # the revision of the command line
        # the library's version and Python's; no torch, no other program
        assert re.fullmatch(r"unknown/None; hf_hub/[\d.]+; python/[\d.]+", agent), agent


def test_a_swap_to_the_same_id_downloads_new_files(tmp_path: Path, theirs: Hub, stored: Path) -> None:
    with processes.running(tmp_path, "--batch-tokens", "512", env={"HF_ENDPOINT": theirs.url}) as server:
        load(server, model="m", source="org/changing")
        before = server.scores("m", QUERY, TEXTS)
        cross_encoders.make_cross_encoder(
            stored / "org/changing", "bert", seed=1, hidden_size=256, num_hidden_layers=2
        )
        answer = server.post("/v1/admin/swap", {"model": "m", "source": "org/changing"})
        assert answer.status_code == 200, answer.text
        assert server.scores("m", QUERY, TEXTS) != before
