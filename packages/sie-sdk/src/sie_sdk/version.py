"""The SDK's version, sent as `X-SIE-SDK-Version`. A test keeps it equal to the one in pyproject.toml."""

from __future__ import annotations

__version__ = "1.0.0+self.1"
