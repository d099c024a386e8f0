"""Late interaction: the speed of a second request over the same 100 documents, and the equality of its scores.

.venv/bin/python bench/late_interaction.py

One server with a document cache and one without, on this machine, over HTTP. Two models: the embedded one, and a
ColBERT checkpoint of its encoder with a random projection to 128 dimensions (speed and equality do not depend on the
weights). Each round ranks documents that are new to the server for one query and then for another.
Prints the median times, their ratio, and the largest difference from the scores of the server without cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sie_sdk import SIEClient
from sie_server.catalog import EMBEDDED

CORPUS = Path(__file__).parents[1] / "examples" / "demo" / "corpus.jsonl"
FIRST, SECOND = "how do stars burn hydrogen into helium", "what to do when bread does not rise"
COLBERT, MINI = "bench/colbert", "sie/mini-en"
SAME = 1e-6  # largest difference of scores in fp32; in bf16 the forward pass itself may vary with the batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--least", type=float, default=5.0, help="fail below this ratio")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = make_colbert(Path(name) / "colbert")
        flags = ["--dtype", arguments.dtype, "--threads", str(arguments.threads), "--model", MINI]
        flags += ["--model", f"{COLBERT}={checkpoint}"]
        with server(*flags) as cached, server(*flags, "--document-cache-mb", "0") as plain:
            results = [
                measure(model, cached, plain, arguments.rounds, arguments.documents)
                for model in (COLBERT, MINI)
            ]
    fast = min(ratio for ratio, _ in results) >= arguments.least
    same = arguments.dtype != "float32" or max(difference for _, difference in results) <= SAME
    return 0 if fast and same else 1


def measure(model: str, cached: SIEClient, plain: SIEClient, rounds: int, count: int) -> tuple[float, float]:
    """Return the median ratio of first to second request, and the largest difference of scores; print a line."""
    first: list[float] = []
    second: list[float] = []
    again: list[float] = []
    difference = 0.0
    for number in range(-1, rounds):  # round -1 warms up
        documents = [{"text": f"{number}. {text}"} for text in passages(count)]
        took_first, _ = timed(cached, model, FIRST, documents)
        took_second, scores = timed(cached, model, SECOND, documents)
        took_plain, expected = timed(plain, model, SECOND, documents)
        if number < 0:
            continue
        first.append(took_first)
        second.append(took_second)
        again.append(took_plain)
        difference = max(difference, *(abs(a - b) for a, b in zip(scores, expected, strict=True)))
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    times = [f"{statistics.median(values) * 1e3:7.1f} ms" for values in (first, second, again)]
    print(
        f"{model:14} {count} documents   first {times[0]}   second {times[1]}   ratio {ratio:5.1f}   "
        f"second without cache {times[2]}   max |Δ score| {difference:.1e}"
    )
    return ratio, difference


def passages(count: int) -> list[str]:
    """Return `count` passages of the corpus, repeated if it has fewer."""
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [f"{i // len(texts)} {texts[i % len(texts)]}" for i in range(count)]


def timed(
    client: SIEClient, model: str, query: str, documents: list[dict[str, str]]
) -> tuple[float, list[float]]:
    """Return the seconds and the scores in the order of `documents`."""
    start = time.perf_counter()
    result = client.score(model, {"text": query}, documents)  # type: ignore[arg-type]
    took = time.perf_counter() - start
    by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return took, [by_id[f"item-{i}"] for i in range(len(documents))]


def make_colbert(directory: Path) -> Path:
    """Write the embedded encoder as a Stanford ColBERT checkpoint."""
    directory.mkdir()
    source = EMBEDDED / "mini-en"
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["HF_ColBERT"], "model_type": "bert"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(source / "tokenizer.json", directory)
    (directory / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}', encoding="utf-8")
    metadata = {"dim": 128, "query_maxlen": 32, "doc_maxlen": 300}
    (directory / "artifact.metadata").write_text(json.dumps(metadata), encoding="utf-8")
    tensors = {
        f"bert.{name}": tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if not name.startswith("scorer.")
    }
    torch.manual_seed(0)
    tensors["linear.weight"] = torch.randn(128, config["hidden_size"]) * 0.05
    save_file(tensors, directory / "model.safetensors")
    return directory


@contextmanager
def server(*flags: str) -> Iterator[SIEClient]:
    """Start a server process and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sie_server", "serve", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen([*command, *flags])
    try:
        with SIEClient(f"http://127.0.0.1:{port}") as client:
            wait(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def wait(client: SIEClient, process: subprocess.Popen[bytes]) -> None:
    """Wait until both models are loaded."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if all(client.get_model(model)["loaded"] for model in (COLBERT, MINI)):
                return
        except Exception:  # not listening yet
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    raise SystemExit(main())
