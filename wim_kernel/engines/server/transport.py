"""Requests to servers: streams that end well or are an error, retries, limits, and closing that stops the work."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai

from wim_kernel.common import forks
from wim_kernel.common.concurrency import stoppable
from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.deltas import Piece, piece_of, piece_of_likelihoods

Item = TypeVar("Item")
AWAY = 30.0
"""Seconds for which a server that failed is left alone, if there are others."""
NO_KEY = "none"
"""What is sent in place of a key where there is none."""
_END = object()


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()
_of_the_parent: list[object] = []
"""Loops and clients of the process that was forked. Collecting them here would close what the parent still uses."""
_THREAD = "wim-requests"


def background() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, for all requests of this process."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
        return _loop


def _renew_after_fork() -> None:
    global _loop, _loop_lock
    _of_the_parent.append(_loop)
    _loop, _loop_lock = None, threading.Lock()


forks.in_child(_renew_after_fork)


def wait_for(work: Coroutine[Any, Any, Item]) -> Item:
    """Run a coroutine there and wait; an interrupt stops it."""
    future = asyncio.run_coroutine_threadsafe(work, background())
    try:
        with stoppable(future.cancel):
            return future.result()
    finally:
        future.cancel()


Put = Callable[[Item], None]


def gathered(work: Sequence[Callable[[Put[Item]], Coroutine[Any, Any, None]]]) -> Iterator[Item]:
    """Run coroutines together and yield what they put, as it comes. Closing this stops them all, and waits for that.

    Raises:
        Exception: the first that one of them raises; the others are stopped.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop = background()
    running: list[asyncio.Task[None]] = []

    async def run() -> None:
        tasks = [asyncio.ensure_future(each(found.put)) for each in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def begin() -> None:
        running.append(loop.create_task(run()))
        running[0].add_done_callback(lambda _: found.put(_END))  # also if it was stopped before it began

    def stop() -> None:
        loop.call_soon_threadsafe(lambda: running[0].cancel())

    loop.call_soon_threadsafe(begin)
    ended, born = False, forks.generation()
    try:
        with stoppable(stop):
            while (item := found.get()) is not _END:
                yield item
                forks.check_same_process(born)
        ended = True
        if running[0].cancelled():
            raise CancelledError("The requests were stopped.")
        running[0].result()
    finally:
        if not ended and born == forks.generation():
            stop()
            if threading.current_thread().name != _THREAD:  # collected there, it would wait for itself
                while found.get() is not _END:
                    pass


class Server:
    """One server.

    Args:
        base_url: of its API, with ``/v1``.
        api_key: sent to this server alone; by default what ``OPENAI_API_KEY`` says.
        timeout: seconds without a sign of life after which a request has failed.
        concurrency: most requests at a time.

    Attributes:
        name: its address as it is shown, without a user's name and password.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout: float, concurrency: int) -> None:
        self.base_url = base_url.rstrip("/")
        self.name = _without_login(self.base_url)
        self.timeout = timeout
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY
        self.concurrency = concurrency
        self._away_until = 0.0
        self._client: openai.AsyncOpenAI | None = None
        self._gate: asyncio.Semaphore | None = None
        self.running = 0
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Connections and requests under way are the parent's."""
        _of_the_parent.append(self._client)
        self._client, self._gate, self.running = None, None, 0

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The API's client, made when it is first needed."""
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=self._api_key,
                timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
                max_retries=0,  # the engine tries again, for more reasons
                # a redirect could take the key elsewhere
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            )
        return self._client

    def __repr__(self) -> str:
        return f"Server({self.name!r})"

    @property
    def away(self) -> bool:
        """Whether it failed a short while ago."""
        return time.monotonic() < self._away_until

    def failed(self) -> None:
        """Leave it alone for a while."""
        self._away_until = time.monotonic() + AWAY

    @property
    def gate(self) -> asyncio.Semaphore:
        """Lets so many requests through at a time, in order."""
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.concurrency)
        return self._gate

    async def get(self, path: str) -> Any:
        """The JSON at a path beside the API's, or None if there is no such thing there."""
        status, found = await self._beside("GET", path)
        return found if status is not None and 200 <= status < 300 else None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int | None, Any]:
        """The status and the JSON that such a path answers with: no status if no answer came, None for no JSON."""
        return await self._beside("POST", path, body)

    async def _beside(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int | None, Any]:
        url = self._beside_api(path)
        headers = {"Authorization": f"Bearer {self.client.api_key}"}
        timeout = 10.0 if body is None else self.timeout
        for _ in range(2):  # a connection that was kept may turn out to be closed
            try:
                answer = await self.client._client.request(
                    method, url, json=body, headers=headers, timeout=timeout
                )
            except Exception:  # whatever its transport raises: no answer came
                continue
            try:
                return answer.status_code, answer.json()
            except ValueError:
                return answer.status_code, None
        return None, None

    def _beside_api(self, path: str) -> str:
        return self.base_url.removesuffix("/v1") + path

    async def models(self) -> list[dict[str, Any]]:
        """The models it serves.

        Raises:
            ServerError: if it cannot be asked.
        """
        try:
            found = [model.model_dump() async for model in self.client.models.list()]
            return [model for model in found if isinstance(model.get("id"), str)]
        except Exception as error:  # also what the client makes of an answer that is no list of models
            raise self.error("its models could not be listed", error) from self._shown(error)

    async def stream(self, fields: dict[str, Any], extra: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """A completion, piece by piece; of messages if there are any.

        Raises:
            ServerError: if it cannot be had, or breaks off before its end.
        """
        chat = "messages" in fields
        create: Any = self.client.chat.completions.create if chat else self.client.completions.create
        finished = False
        async with self._working():
            stream = await create(**fields, stream=True, extra_body=extra)
            async with stream:
                async for event in stream:
                    piece = piece_of(event, self.base_url, chat=chat)
                    finished = finished or piece.finish is not None
                    yield piece
        if not finished:
            raise self.error("an answer broke off before its end", None)

    async def likelihoods(
        self, ids: Sequence[int], scored: int, coming: Sequence[int]
    ) -> AsyncGenerator[Piece, None]:
        """How likely tokens are, each behind all those before it, in one piece.

        Args:
            ids: of a prompt.
            scored: how many of its last tokens are meant, which have another before them.
            coming: tokens that may come next, likewise.

        Raises:
            ServerError: if that cannot be had.
        """
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1 if coming else 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": len(ids) - scored - 1 if scored else -1,
            "token_ids_logprob": list(coming) or None,
        }
        async with self._working():
            answer = await self.client.post(self._beside_api("/generate"), cast_to=object, body=body)
            piece = piece_of_likelihoods(answer, scored, self.base_url)
        yield piece

    @asynccontextmanager
    async def _working(self) -> AsyncGenerator[None, None]:
        """A request's turn, in which whatever goes wrong is a `ServerError`."""
        async with self.gate:
            self.running += 1
            try:
                yield
            except Exception as error:  # also what the transport raises in the middle, and what is no JSON
                raise self.error("a request failed", error) from self._shown(error)
            finally:
                self.running -= 1

    def error(self, what: str, error: Exception | None) -> ServerError:
        """What went wrong, in words that hold no key."""
        status = getattr(error, "status_code", None)
        detail = (
            f" ({type(error).__name__}{f', status {status}' if status else ''}: {self._short(error)})"
            if error
            else ""
        )
        passing = status is None or status in (408, 409, 429) or status >= 500
        found = ServerError(self.name, what + detail, status=status, passing=passing)
        headers = getattr(getattr(error, "response", None), "headers", {})
        found.retry_after = _seconds(headers.get("retry-after"))
        return found

    def _short(self, error: Exception) -> str:
        """What an error says, without the key that a server may have sent back in it."""
        text = str(error)
        if self.client.api_key != NO_KEY:
            text = text.replace(self.client.api_key, "[the key]")
        return " ".join(text.split())[:300]

    def _shown(self, error: Exception) -> Exception | None:
        """An error as the cause of another, which a traceback shows; none if the key is in it."""
        return error if self.client.api_key == NO_KEY or self.client.api_key not in str(error) else None


def _seconds(text: str | None) -> float:
    try:
        return min(60.0, max(0.0, float(text or 0)))
    except ValueError:  # a date
        return 0.0


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
