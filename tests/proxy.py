"""A TCP proxy in front of a server, that can be told to spoil connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWERS = {
    429: b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\n{}",
    500: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}",
    401: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}",
}


def http(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    """An answer."""
    head = f"HTTP/1.1 {status} As told\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + body


class Proxy:
    """Passes connections on to a port of this machine, or spoils them.

    Attributes:
        spoil: how each next connection that carries a request goes wrong, in order: ``"refuse"``, ``"cut"`` (after
            some bytes of the answer), ``"garbage"``, ``"delay"``, ``"redirect"``, or the number of an HTTP error. None
            goes well, and so do those that come after.
        cut_after: bytes of the answer that a cut connection lets through.
        answers: what is answered in the server's place to a request whose first line holds the key; empty closes.
        requests: heads of the requests that came.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.spoil: list[str | int | None] = []
        self.cut_after = 600
        self.delay = 0.5
        self.redirect_to = ""
        self.answers: dict[bytes, bytes] = {}
        self.requests: list[bytes] = []
        self.closed_early = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._pass(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        body = await reader.readexactly(length)
        how = self.spoil.pop(0) if self.spoil and head.startswith(b"POST") else None
        if how == "refuse":
            return
        line = head.split(b"\r\n")[0]
        for key, answer in self.answers.items():
            if key in line:
                writer.write(answer)
                return await writer.drain()
        if isinstance(how, int):
            writer.write(ANSWERS[how])
            return await writer.drain()
        if how == "redirect":
            place = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {self.redirect_to}\r\nContent-Length: 0\r\n\r\n"
            writer.write(place.encode())
            return await writer.drain()
        if how == "garbage":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {not json\n\n"
            )
            return await writer.drain()
        gone = asyncio.ensure_future(reader.read(1))  # the client says nothing more: this ends when it closes
        if how == "delay":
            await asyncio.wait({gone}, timeout=self.delay)
            if gone.done():
                self.closed_early += 1
                return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        up_writer.write(head.replace(b"keep-alive", b"close") + body)
        sent, answer = 0, asyncio.ensure_future(up_reader.read(4096))
        try:
            while True:
                await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    self.closed_early += 1
                    return
                data = answer.result()
                if not data:
                    return
                if how == "cut" and sent + len(data) > self.cut_after:
                    writer.write(data[: self.cut_after - sent])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
                sent += len(data)
                answer = asyncio.ensure_future(up_reader.read(4096))
        finally:
            for task in (gone, answer):
                task.cancel()
            up_writer.close()


def posts(proxy: Proxy) -> int:
    """Requests for completions that came."""
    return sum(head.startswith(b"POST") for head in proxy.requests)


@contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    """A proxy that runs in a thread of its own."""
    proxy, started = Proxy(target), threading.Event()

    async def serve() -> asyncio.Server:
        server = await asyncio.start_server(proxy._handle, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        started.set()
        return server

    def run() -> None:
        asyncio.set_event_loop(proxy._loop)
        server = proxy._loop.run_until_complete(serve())
        proxy._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(proxy._loop):
            task.cancel()
        proxy._loop.run_until_complete(asyncio.sleep(0))
        proxy._loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
