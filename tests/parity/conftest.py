"""Parity tests compare values, not speed, so they use one thread and stay quick on a busy machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
