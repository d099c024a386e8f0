"""Parity is about values, not speed: one thread keeps these tests quick on a machine that does other things too."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
