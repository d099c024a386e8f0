"""`sie-server bench` with a real server: every dialect, and the probe."""

from __future__ import annotations

import json
from functools import cache

import pytest
from click.testing import CliRunner

from sie_server.api.dialects import RERANK
from sie_server.cli.commands import cli
from sie_server.loadtest.dialects import DIALECTS
from sie_server.loadtest.probe import probe
from support.servers.processes import Server

MODEL = "sie/mini-en"
QUERY = "what do stars burn"
TEXTS = ["Rain falls over the harbour.", "Stars burn hydrogen into helium.", "Lawyers argue about contracts."]
# Dialects of the server without a client here: requests to Bedrock need signatures; the second one is no vendor's.
WITHOUT_CLIENT = {"Cohere on Bedrock", "vLLM or Weaviate"}
PREFIXED = ("sglang", "infinity", "pinecone", "weaviate")  # their paths are those of other dialects


@cache
def scores(base_url: str, name: str) -> tuple[float, ...]:
    url = f"{base_url}/{name}" if name in PREFIXED else base_url
    endpoint = probe(url, name, MODEL, "", 60)
    connection = endpoint.connect()
    try:
        return tuple(endpoint.score(connection, QUERY, TEXTS))
    finally:
        connection.close()


@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "sie"])
def test_every_dialect_brings_the_scores_in_the_order_of_the_documents(server: Server, name: str) -> None:
    raw, found = scores(server.base_url, "sie"), scores(server.base_url, name)
    assert sorted(range(3), key=lambda i: found[i]) == sorted(range(3), key=lambda i: raw[i])
    assert max(range(3), key=lambda i: found[i]) == 1


def test_every_dialect_of_the_server_has_a_client() -> None:
    served = {dialect.name for dialects in RERANK.values() for dialect in dialects} - WITHOUT_CLIENT
    known = {name.lower().replace("nvidia ", "").replace(", ", "-").replace(" ", "-") for name in served}
    assert known | {"sie"} == set(DIALECTS)


@pytest.mark.parametrize(("options", "dialect"), [(["--model", MODEL], "sie"), ([], "tei")])
def test_the_probe_finds_the_dialect(server: Server, options: list[str], dialect: str) -> None:
    command = ["bench", "--endpoint", server.base_url, *options, "--format", "json", "--documents", "4"]
    done = CliRunner().invoke(cli, [*command, "--clients", "1,4", "--seconds", "0.3"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["dialect"] == dialect
    assert [phase["clients"] for phase in report["phases"]] == [1, 4]
    assert all(phase["requests"] > 0 and not phase["failures"] for phase in report["phases"])


def test_an_unknown_model_is_named(server: Server) -> None:
    command = ["bench", "--endpoint", server.base_url, "--dialect", "cohere-v2", "--model", "no/model"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert "HTTP 404" in done.stderr and "no/model" in done.stderr and len(done.stderr.splitlines()) == 1
