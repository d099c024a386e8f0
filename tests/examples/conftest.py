"""A server for the examples, with the embedded reranker and the encoder from an installed package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.servers import processes
from support.servers.processes import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with processes.running(tmp_path_factory.mktemp("server"), "--dtype", "float32", "--offline") as it:
        yield it
