"""`sie-server eval` and `calibrate`, which read judged queries."""

from sie_server.cli.judged.calibrate import calibrate
from sie_server.cli.judged.evaluate import evaluate

__all__ = ["calibrate", "evaluate"]
