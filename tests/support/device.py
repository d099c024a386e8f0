"""The device that tests run models on."""

from __future__ import annotations

import os

DEVICE = os.environ.get("SIE_TEST_DEVICE", "cpu")
