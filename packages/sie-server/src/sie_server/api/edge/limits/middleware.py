"""Middleware inside the gate that applies the limits of the caller's key before the body is read.

Callers without a key, routes that need none and keys with the scope admin have no limits. The usage of every key is
counted.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_server.api.edge.limits.account import Accounts
from sie_server.api.edge.limits.fields import fields_of
from sie_server.api.edge.limits.pacing import rest
from sie_server.errors import RateLimited
from sie_server.serving.metrics import RequestTiming


class LimitedKeys:
    """Enters each request of a key into its account, and adds the fields of `fields_of` to the response."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app, self._accounts = app, accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = self._accounts.by_name.get(scope["state"]["caller"]) if scope["type"] == "http" else None
        if account is None:
            await self._app(scope, receive, send)
            return
        clock = self._accounts.clock
        timing: RequestTiming = scope["state"]["timing"]
        try:
            visit = account.enter(clock())
        except RateLimited as error:
            await rest(Request(scope), account.refusal_delay_s(clock()))
            error.headers = fields_of(account, clock())
            raise
        timing.most_tokens = account.limits.tokens_per_minute
        timing.on_tokens = lambda tokens: visit.charge(tokens, clock())
        status = 500

        async def send_with_fields(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fields = fields_of(account, clock()).items()
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in fields),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_fields)
        finally:
            visit.leave(status, timing.tokens or 0, clock())
