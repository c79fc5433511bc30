"""The short way of infer requests, at the socket: one protocol whatever the bytes come like."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from pipelines.contracts.events import Assignment, Response
from serving.connections import Guard, bounded
from serving.lifespan import with_lifespan
from tests.serving.conftest import Installation, Running, Start

pytestmark = pytest.mark.anyio

PATH = "/v2/models/m/infer"


def post(request_id: str, path: str = PATH, headers: str = "", x: object = 1.0) -> bytes:
    body = json.dumps({"id": request_id, "inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [x]}]})
    return f"POST {path} HTTP/1.1\r\nHost: g\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class Client:
    """Bytes out, answers in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(20):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            body = b"" if head else await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def id(self) -> str:
        status, _, body = await self.answer()
        assert status == 200, body
        found: str = json.loads(body)["id"]
        return found

    async def closed(self) -> bool:
        async with asyncio.timeout(20):
            return await self._reader.read(1) == b""


@asynccontextmanager
async def served(running: Running, keep_alive_s: int = 5) -> AsyncIterator[int]:
    """The running gateway behind a real socket, with the protocol that a worker uses; gives the port."""
    # The fixture has started the gateway: nothing is left for the lifespan to do.
    app = with_lifespan(running.app, None)
    protocol = bounded(Guard(running.gateway.limits), running.app)
    config = uvicorn.Config(
        app, port=0, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    try:
        await running.until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_an_answer_by_the_short_way_is_that_of_the_general_way(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running, served(running) as port, connected(port) as client:
        general = await running.infer("a")
        client.send(post("a"))
        status, headers, body = await client.answer()
        assert (status, json.loads(body)) == (general.status_code, general.json())
        assert headers["content-type"] == general.headers["content-type"]
        assert headers["date"]
        for broken in (post("b", x="text"), post("b", path="/v2/models/n/infer"), post("b", x=[1])):
            client.send(broken)
            status, _, body = await client.answer()
            again = await running.client.post(broken.split()[1].decode(), content=broken.partition(b"\r\n\r\n")[2])
            assert (status, json.loads(body)) == (again.status_code, again.json())
            assert 400 <= status < 500
        metrics = (await running.client.get("/metrics")).text
    assert 'slipway_request_seconds_count{model="m"} 2.0' in metrics
    assert [event.request_id for event in home.events(Assignment)] == ["a", "a"]


async def test_pipelined_requests_are_answered_in_their_order_whatever_way_each_takes(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running, served(running) as port, connected(port) as client:
        metadata = b"GET /v2/models/m HTTP/1.1\r\nHost: g\r\n\r\n"
        client.send(post("a") + post("b") + metadata + post("c") + post("d"))
        assert [await client.id(), await client.id()] == ["a", "b"]
        status, _, body = await client.answer()
        assert (status, json.loads(body)["name"]) == (200, "m")
        assert [await client.id(), await client.id()] == ["c", "d"]
        client.send(post("e"))
        assert await client.id() == "e"
    assert [event.request_id for event in home.events(Assignment)] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("cut", [1, 30, 60, -80, -1])
async def test_a_request_in_two_pieces_is_one_request(home: Installation, start: Start, cut: int) -> None:
    home.publish()
    async with start() as running, served(running) as port, connected(port) as client:
        whole = post("a")
        client.send(whole[:cut])
        await client.writer.drain()
        await asyncio.sleep(0.05)  # so that the server sees the first piece alone
        client.send(whole[cut:] + post("b"))
        assert [await client.id(), await client.id()] == ["a", "b"]
    assert len(home.events(Response)) == 2


async def test_other_forms_of_http_are_served_too(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running, served(running) as port, connected(port) as client:
        body = post("chunked").partition(b"\r\n\r\n")[2]
        head = f"POST {PATH} HTTP/1.1\r\nHost: g\r\n"
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        assert await client.id() == "chunked"
        packed = gzip.compress(post("packed").partition(b"\r\n\r\n")[2])
        client.send(f"{head}Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed)
        assert await client.id() == "packed"
        client.send(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert (await client.answer(head=True))[0] == 100
        client.send(body)
        assert await client.id() == "chunked"
        client.send(b"HEAD /v2/models/m HTTP/1.1\r\nHost: g\r\n\r\n")
        assert (await client.answer(head=True))[0] == 200
        client.send(f"GET {PATH} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
        assert (await client.answer())[0] == 405
        client.send(post("query", path=f"{PATH}?a=b"))
        assert await client.id() == "query"
        client.send(post("last", headers="Connection: close\r\n"))
        assert await client.id() == "last"
        assert await client.closed()
    async with start() as running, served(running) as port, connected(port) as client:
        client.send(post("old").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert await client.id() == "old"
        assert await client.closed()


async def test_an_offer_of_another_protocol_is_passed_over(home: Installation, start: Start) -> None:
    """The JDK's client, and `curl --http2`, offer HTTP/2 with the first request of a connection."""
    home.publish()
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    async with start() as running, served(running) as port:
        for path, cut in itertools.product((PATH, f"{PATH}?general"), (40, -80, -1, 10_000)):
            async with connected(port) as client:
                whole = post("offered", path, offer)
                client.send(whole[:cut])
                await client.writer.drain()
                await asyncio.sleep(0.02)  # so that the server sees the first piece alone
                client.send(whole[cut:] + post("again", path, offer) + post("plain"))
                assert [await client.id() for _ in range(3)] == ["offered", "again", "plain"]
    assert len(home.events(Response)) == 24


async def test_what_is_no_request_is_refused_behind_the_answers_that_are_owed(home: Installation, start: Start) -> None:
    home.publish()
    garbage = (b"GARBAGE\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00")
    async with start() as running, served(running) as port:
        for bad, path in itertools.product(garbage, (PATH, f"{PATH}?general")):
            async with connected(port) as client:
                client.send(post("a") + post("b", path) + bad)
                assert [await client.id(), await client.id()] == ["a", "b"]
                status, headers, body = await client.answer()
                assert (status, headers["connection"]) == (400, "close")
                assert "error" in json.loads(body)
                assert await client.closed()


async def test_an_idle_connection_is_closed_after_its_last_answer_and_not_before(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running, served(running, keep_alive_s=1) as port, connected(port) as client:
        loop = asyncio.get_running_loop()
        for k in range(4):
            client.send(post(f"q{k}"))
            assert await client.id() == f"q{k}"
            await asyncio.sleep(0.4)  # three of these pauses are longer than the keep-alive
        began = loop.time()
        assert await client.closed()
        assert loop.time() - began < 5


async def test_a_client_that_does_not_read_is_waited_for(home: Installation, start: Start) -> None:
    home.publish()
    # All of them are read in one turn of the loop, and each waits for those before it.
    async with start(limits={"max_queue_ms": 60_000}) as running, served(running) as port, connected(port) as client:
        many = 3000
        client.send(b"".join(post(f"q{k}") for k in range(many)))
        await running.until(lambda: len(home.events(Assignment)) > 100)
        assert [await client.id() for _ in range(many)] == [f"q{k}" for k in range(many)]


async def test_a_full_gateway_refuses_by_either_way(home: Installation, start: Start) -> None:
    home.publish()
    async with start(limits={"max_inflight": 0}) as running, served(running) as port, connected(port) as client:
        client.send(post("a"))
        status, headers, _ = await client.answer()
        assert (status, headers["retry-after"]) == (429, "1")
