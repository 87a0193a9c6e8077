"""Hundreds of clients at once, and clients that never read: bounded time, bounded memory."""

import asyncio
import json
import socket
import time

from server_process import ECHO, served

NUM_CLIENTS = 400


def _request(**fields):
    fields = {"model": "echo", "messages": [{"role": "user", "content": "ab"}]} | fields
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _ask(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


async def _ask_all(port, request):
    return await asyncio.gather(*(_ask(port, request) for _ in range(NUM_CLIENTS)))


def test_hundreds_at_once_are_all_answered_or_told_to_come_back():
    with served([*ECHO, "--max-open", "64", "--slow", "0.02"]) as server:
        asyncio.run(_ask(server.port, _request(max_tokens=5)))
        before = server.rss_bytes()
        start = time.monotonic()
        answers = asyncio.run(_ask_all(server.port, _request(max_tokens=30, stream=True)))
        assert time.monotonic() - start < 60
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 64
        assert all(b"data: [DONE]" in text for status, text in answers if status == 200)
        assert all(b"retry-after: " in text for status, text in answers if status == 429)
        assert server.rss_bytes() - before < 60 << 20
        assert asyncio.run(_ask(server.port, _request(max_tokens=5)))[0] == 200


def test_with_room_for_all_all_are_answered():
    with served([*ECHO, "--max-open", str(NUM_CLIENTS)]) as server:
        answers = asyncio.run(_ask_all(server.port, _request(max_tokens=30, n=1)))
        assert [status for status, _ in answers] == [200] * NUM_CLIENTS
        assert all(b"abab" in text for _, text in answers)


def test_clients_that_never_read_are_given_up_and_cost_no_memory():
    # Each asks for 13 MB of events, and takes a few thousand bytes of them.
    options = ("--max-open", "8", "--send-timeout", "1", "--context", "65536", "--slow", "0.0001")
    with served([*ECHO, *options]) as server:
        assert asyncio.run(_ask(server.port, _request(max_tokens=5)))[0] == 200
        before = server.rss_bytes()
        # Were all of it kept, it would be 100 MB.
        idle = [socket.socket() for _ in range(8)]
        for one in idle:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", server.port))
            one.sendall(_request(max_tokens=60_000, stream=True))
        for one in idle:
            assert one.recv(12) == b"HTTP/1.1 200"
        assert asyncio.run(_ask(server.port, _request(max_tokens=5)))[0] == 429
        deadline = time.monotonic() + 60
        peak = 0
        while asyncio.run(_ask(server.port, _request(max_tokens=5)))[0] == 429:
            peak = max(peak, server.rss_bytes() - before)
            assert time.monotonic() < deadline, "the places of idle clients are never freed"
            time.sleep(0.05)
        assert peak < 30 << 20
        for one in idle:
            one.close()
