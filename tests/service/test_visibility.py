"""What callers see: paths only with the scope admin, metrics only of known models, and a log that cannot be forged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sie_server.api.visible import without_paths
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually

INFER, ADMIN = "infer-3f9a27c1d05b", "admin-8c1e64b7a290"
FORGED = "2026-11-28 12:00:00,000 INFO sie_server.admin: forged"
BODY = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Return a models directory whose path contains a blank: a good model, broken ones and an odd name."""
    root = tmp_path_factory.mktemp("secret") / "my models"
    shutil.copytree(models / "toy/bert", root / "good")
    shutil.copytree(models / "toy/bert", root / "broken")
    (root / "broken/model.safetensors").write_bytes(b"no weights")
    shutil.copytree(models / "toy/bert", root / f"odd\n{FORGED}")
    (root / "lora").mkdir()
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Server]:
    """Serve the directory with an infer key and an admin key."""
    args = ["--models-dir", str(root), "--models-dir-poll-s", "0.1", f"--adapter=good:x={root / 'lora'}"]
    env = {"SIE_API_KEYS": f"web:infer:{INFER},ops:admin:{ADMIN}"}
    with processes.running(tmp_path_factory.mktemp("server"), *args, "--dtype", "float32", env=env) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def answers(server: Server, key: str) -> dict[str, httpx.Response]:
    """Return every answer that could name a directory."""
    return {
        "load": server.post("/v1/score/broken", BODY, headers=bearer(key)),
        "dialect": server.post(
            "/v1/rerank", {"model": "broken", "query": "q", "documents": ["a"]}, headers=bearer(key)
        ),
        "embeddings": server.post("/v1/embeddings", {"model": "broken", "input": "a"}, headers=bearer(key)),
        "adapter": server.post("/v1/score/good:x", BODY, headers=bearer(key)),
        "list": server.get("/v1/models", bearer(key)),
        "model": server.get("/v1/models/broken", bearer(key)),
        "adapters": server.get("/v1/models/good", bearer(key)),
    }


def test_only_admins_see_paths(server: Server, root: Path) -> None:
    secret = root.parent.name
    for name, answer in answers(server, INFER).items():
        assert answer.status_code == (502 if name in ("load", "dialect", "embeddings", "adapter") else 200)
        assert secret not in answer.text and "my models" not in answer.text, name
        assert str(Path.home()) + "/" not in answer.text, name
    with_paths = {name for name, answer in answers(server, ADMIN).items() if secret in answer.text}
    assert with_paths >= {"adapter", "list", "model", "adapters"}
    seen = server.get("/v1/models/good", bearer(INFER)).json()
    assert (seen["source"], seen["adapters"][0]["source"]) == ("good", "lora")
    assert server.get("/v1/models/broken", bearer(INFER)).json()["last_error"]
    assert eventually(lambda: secret in server.log)


def test_without_keys_only_local_callers_see_paths(tmp_path: Path, root: Path) -> None:
    with processes.running(tmp_path, "--models-dir", str(root), "--dtype", "float32") as server:
        assert str(root) in server.get("/v1/models/good").text
        for header in ({"x-forwarded-for": "192.0.2.1"}, {"host": "example.org"}):
            answer = server.get("/v1/models/good", header)
            assert answer.json()["source"] == "good" and root.parent.name not in answer.text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("cannot read /srv/models/bert/config.json: no such file", "cannot read config.json: no such file"),
        ("'/srv/models/bert' is empty", "'bert' is empty"),
        ("~/models/bert is empty", "bert is empty"),
        ("the directory /home/my name/models/bert is empty", "the directory bert is empty"),
        (
            "see https://huggingface.co/org/name for org/name",
            "see https://huggingface.co/org/name for org/name",
        ),
        ("weights in 1/2 of ./a/b", "weights in 1/2 of ./a/b"),
        ("(/srv/a/b.bin,/srv/c)", "(b.bin,c)"),
        ("no path", "no path"),
        ("3 / 5 s, a /srv/models/ and /", "3 / 5 s, a models and /"),
        ("model 'BAAI/bge-m3' is loading", "model 'BAAI/bge-m3' is loading"),
    ],
)
def test_the_last_part_of_a_path_is_left(text: str, seen: str) -> None:
    assert without_paths(text, ["/home/my name/models/"]) == seen


def lines(server: Server) -> list[str]:
    """Return the samples without their values; those of several replicas once."""
    found = (line for line in server.get("/metrics").text.splitlines() if not line.startswith("#"))
    return sorted({re.sub(r',?replica="\w+"', "", line.rpartition(" ")[0]) for line in found})


def test_metrics_grow_only_with_known_models(server: Server, root: Path) -> None:
    known = {"good", "broken", "sie/mini-en", "unknown"}
    headers = bearer(ADMIN)
    server.post("/v1/score/good", BODY, headers=headers)
    before = len(lines(server))
    for i in range(5):
        body = {"model": f"new-{i}", "source": str(root / "broken")}
        assert server.post("/v1/admin/load", body, headers=headers).status_code == 502
        assert server.post(f"/v1/score/other-{i}", BODY, headers=headers).status_code == 404
        assert server.post(f"/v1/score/good:other-{i}", BODY, headers=headers).status_code == 404
        assert (
            server.post("/v1/embeddings", {"model": f"x{i}", "input": "a"}, headers=headers).status_code
            == 404
        )
    found = lines(server)
    assert {model for line in found for model in re.findall(r'model="(.*?)"', line)} <= known
    after = len(found)
    for i in range(5, 20):
        body = {"model": f"new-{i}", "source": str(root / "broken")}
        server.post("/v1/admin/load", body, headers=headers)
        server.post(f"/v1/score/other-{i}", BODY, headers=headers)
    assert len(lines(server)) == after
    assert after - before < 60  # the series of `unknown`


def test_a_model_that_is_removed_takes_its_metrics_with_it(server: Server, root: Path) -> None:
    shutil.copytree(root / "good", root / "brief")
    assert eventually(lambda: server.get("/v1/models/brief", bearer(INFER)).status_code == 200)
    assert server.post("/v1/score/brief", BODY, headers=bearer(INFER)).status_code == 200
    assert any('model="brief"' in line for line in lines(server))
    shutil.rmtree(root / "brief")
    assert eventually(lambda: server.get("/v1/models/brief", bearer(INFER)).status_code == 404)
    assert eventually(lambda: not any('model="brief"' in line for line in lines(server)))


def test_a_directory_cannot_forge_a_line_of_the_log(server: Server) -> None:
    assert eventually(lambda: FORGED in server.log)
    assert not any(line.startswith(FORGED) for line in server.log.split("\n"))
    assert not any(line.startswith("2026-11-28 12:00:00,000") for line in server.log.splitlines())
