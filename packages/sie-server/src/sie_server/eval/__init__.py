"""Evaluation of models on a user's own judgments, for `sie-server eval` and for notebooks.

    from sie_server.eval import evaluate

    report = evaluate("data/scifact", ["sie/mini-en"], queries=100)
    report  # tables, in a notebook; report.rows(), report.as_dict(), report.write("DIRECTORY") elsewhere

docs/evaluate.md describes data, figures and files.
"""

from sie_server.eval.data.collection import Collection, DataError
from sie_server.eval.data.load import load
from sie_server.eval.evaluation import evaluate
from sie_server.eval.metrics import per_query
from sie_server.eval.report.report import Report
from sie_server.offline.errors import OfflineError

__all__ = ["Collection", "DataError", "OfflineError", "Report", "evaluate", "load", "per_query"]
