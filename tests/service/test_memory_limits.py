"""A limit on the memory of the process, lowered and lifted: requests get 503 in between, and then are served again."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pytest

from sie_server.models.layers import onednn
from support.checkpoints import cross_encoders
from support.servers import processes
from support.servers.processes import Server

ALLOCATOR = {  # freed memory stays with the allocator, so that tensors still fit and new mappings do not
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


def ask(server: Server, words: int) -> tuple[int, str, list[float]]:
    """Return status, code and scores for two texts, whose length decides which kernel is needed."""
    body = {"query": {"text": "rain"}, "items": [{"text": "rain falls " * words}, {"text": "stars"}]}
    answer = server.post("/v1/score/toy/bert", body).json()
    if "code" in answer:
        return 0, answer["code"], []
    return 200, "", [entry["score"] for entry in answer["scores"]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
@pytest.mark.skipif(not onednn.usable(), reason="this processor multiplies bf16 without oneDNN's kernels")
def test_a_kernel_without_memory_spoils_neither_later_requests_nor_the_process(tmp_path: Path) -> None:
    model = cross_encoders.make_cross_encoder(tmp_path / "bert", "bert")
    args = [f"--model=toy/bert={model}", "--dtype=bfloat16", "--batch-tokens=4096"]
    with processes.running(tmp_path, *args, env=ALLOCATOR) as server:
        pid = server.process.pid
        before = ask(server, 3)
        ask(server, 60)  # memory of tensors, kept by the allocator
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size, -1))
        seen = [ask(server, words)[1] for words in range(4, 40)]
        assert "RESOURCE_EXHAUSTED" in seen
        assert set(seen) <= {"", "RESOURCE_EXHAUSTED"}
        resource.prlimit(pid, resource.RLIMIT_AS, (-1, -1))
        lifted = time.monotonic()
        while (found := ask(server, 3)) != before:
            assert time.monotonic() - lifted < 5, found
            time.sleep(0.1)
        assert [ask(server, words)[0] for words in range(4, 40)] == [200] * 36
        assert server.get("/readyz").status_code == 200
        assert "Traceback" not in server.log
