"""The usage of keys as metrics. The label `key` has only the names of configured keys, so the series are bounded."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from sie_server.api.edge.limits.account import Accounts
from sie_server.wire import KeyRefusals

REASONS = [field.name for field in structs.fields(KeyRefusals)]


class KeyCollector(Collector):
    """Reads the accounts at scrape time."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def collect(self) -> Iterator[Metric]:
        """sie_key_{requests,tokens,refused}_total."""
        requests = CounterMetricFamily(
            "sie_key_requests", "Requests of an API key, answered", labels=["key", "code_class"]
        )
        tokens = CounterMetricFamily("sie_key_tokens", "Tokens charged to an API key", labels=["key"])
        refused = CounterMetricFamily(
            "sie_key_refused", "Requests refused because of a limit of the API key", labels=["key", "reason"]
        )
        for name, account in self._accounts.by_name.items():
            for code_class, count in account.answered.items():
                requests.add_metric([name, code_class], count)
            tokens.add_metric([name], account.tokens)
            for reason in REASONS:
                refused.add_metric([name, reason], account.refused[reason])
        yield requests
        yield tokens
        yield refused
