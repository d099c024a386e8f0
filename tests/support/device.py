"""The device of engines and servers under test: `SIE_TEST_DEVICE`, by default the CPU.

`SIE_TEST_DEVICE=cuda make parity` compares a GPU with the reference implementations, which always run on the CPU.
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("SIE_TEST_DEVICE", "cpu")
