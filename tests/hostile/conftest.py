"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.hostile.targets import Observed, Targets


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    targets = Targets(tmp_path_factory.mktemp("hostile"))
    try:
        yield targets
    finally:
        targets.close()


@pytest.fixture
def observed(targets: Targets) -> Observed:
    """Return a server that answers, and its probe."""
    return targets.current()
