"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sie_server.api.edge.connections.listening import bind


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_answers_leave_at_once(host: str) -> None:
    """Otherwise an answer's body waits until the client acknowledges the head, up to 40 ms."""
    try:
        listener = bind(host, 0)
    except Exception:
        pytest.skip(f"this machine has no {host}")
    accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket"))
        await reader.read()
        writer.close()

    async with asyncio.timeout(20), await asyncio.start_server(on_connection, sock=listener) as server:
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        taken = await accepted
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        server.close()
