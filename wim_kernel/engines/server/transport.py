"""Requests to servers: streams that end well or are an error, retries, limits, and closing that stops the work."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from wim_kernel.asynchrony import stoppable
from wim_kernel.errors import ServerError

Item = TypeVar("Item")
AWAY = 30.0
"""Seconds for which a server that failed is left alone, if there are others."""
_END = object()


_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a forked one has no thread of its parent's
_loops_lock = threading.Lock()
_THREAD = "wim-requests"


def background() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, for all requests of this process."""
    with _loops_lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=_THREAD, daemon=True).start()
        return loop


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
    ended = False
    try:
        with stoppable(stop):
            while (item := found.get()) is not _END:
                yield item
        ended = True
        if running[0].cancelled():
            raise CancelledError("The requests were stopped.")
        running[0].result()
    finally:
        if not ended:
            stop()
            if threading.current_thread().name != _THREAD:  # collected there, it would wait for itself
                while found.get() is not _END:
                    pass


@dataclass(frozen=True)
class Piece:
    """One piece of a streamed completion.

    Attributes:
        text: what is new.
        token_ids: its tokens, where the server says them.
        finish: why the text ended, in the last piece that has text to it.
        top: the likeliest tokens at this place, as text, with their log-probabilities.
        usage: what the server says of the request, in one of the last pieces.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: str | None = None
    top: dict[str, float] = field(default_factory=dict)
    usage: Said | None = None


@dataclass(frozen=True)
class Said:
    """What a server says of a request.

    Attributes:
        prompt: tokens of the prompt.
        output: tokens generated.
        cached: tokens of the prompt that were in its cache; None if it does not say.
    """

    prompt: int
    output: int
    cached: int | None


class Server:
    """One server.

    Args:
        base_url: of its API, with ``/v1``.
        api_key: sent to this server alone; by default what ``OPENAI_API_KEY`` says.
        timeout: seconds without a sign of life after which a request has failed.
        concurrency: most requests at a time.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout: float, concurrency: int) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self.client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
            max_retries=0,  # the engine tries again, for more reasons
            # a redirect could take the key elsewhere
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self.concurrency = concurrency
        self._gate: asyncio.Semaphore | None = None
        self._away_until = 0.0
        self.running = 0

    def __repr__(self) -> str:
        return f"Server({self.base_url!r})"

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
        return await self._beside("GET", path)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that such a path answers with, or None if it refuses."""
        return await self._beside("POST", path, body)

    async def _beside(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        url = self.base_url.removesuffix("/v1") + path
        headers = {"Authorization": f"Bearer {self.client.api_key}"}
        timeout = 10.0 if body is None else self.timeout
        for _ in range(2):  # a connection that was kept may turn out to be closed
            try:
                answer = await self.client._client.request(
                    method, url, json=body, headers=headers, timeout=timeout
                )
                return answer.json() if answer.is_success else None
            except Exception:  # whatever its transport raises: there is no such thing there
                continue
        return None

    async def models(self) -> list[dict[str, Any]]:
        """The models it serves.

        Raises:
            ServerError: if it cannot be asked.
        """
        try:
            return [model.model_dump() async for model in self.client.models.list()]
        except openai.OpenAIError as error:
            raise self.error("its models could not be listed", error) from error

    async def stream(self, fields: dict[str, Any], extra: dict[str, Any]) -> AsyncIterator[Piece]:
        """A completion, piece by piece; of messages if there are any.

        Raises:
            ServerError: if it cannot be had, or breaks off before its end.
        """
        chat = "messages" in fields
        create: Any = self.client.chat.completions.create if chat else self.client.completions.create
        finished = False
        async with self.gate:
            self.running += 1
            try:
                stream = await create(**fields, stream=True, extra_body=extra)
                async with stream:
                    async for event in stream:
                        piece = _piece(event, chat)
                        finished = finished or piece.finish is not None
                        yield piece
            except Exception as error:  # also what the transport raises in the middle, and what is no JSON
                raise self.error("a request failed", error) from error
            finally:
                self.running -= 1
        if not finished:
            raise self.error("an answer broke off before its end", None)

    def error(self, what: str, error: Exception | None) -> ServerError:
        """What went wrong, in words that hold no key."""
        status = getattr(error, "status_code", None)
        detail = (
            f" ({type(error).__name__}{f', status {status}' if status else ''}: {_short(error)})"
            if error
            else ""
        )
        passing = status is None or status in (408, 409, 429) or status >= 500
        found = ServerError(self.base_url, what + detail, status=status, passing=passing)
        headers = getattr(getattr(error, "response", None), "headers", {})
        found.retry_after = _seconds(headers.get("retry-after"))
        return found


def _seconds(text: str | None) -> float:
    try:
        return min(60.0, max(0.0, float(text or 0)))
    except ValueError:  # a date
        return 0.0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _piece(event: Any, chat: bool) -> Piece:
    choice = event.choices[0] if event.choices else None
    if choice is None:
        return Piece(usage=_said(event.usage))
    text = choice.delta.content if chat else choice.text
    logprobs, ids = getattr(choice, "logprobs", None), getattr(choice, "token_ids", None)
    top = getattr(logprobs, "top_logprobs", None) or [None]
    first = dict(top[0] or {}) or _first_of_content(logprobs)
    return Piece(
        text or "", _without_stop(ids or (), choice), choice.finish_reason, first, _said(event.usage)
    )


def _without_stop(ids: Sequence[int], choice: Any) -> tuple[int, ...]:
    """Tokens without the one that the text was stopped by, where the server says that one did."""
    stop = getattr(choice, "stop_reason", None)
    stopped = isinstance(stop, int) and ids and ids[-1] == stop
    return tuple(ids[:-1] if stopped else ids)


def _first_of_content(logprobs: Any) -> dict[str, float]:
    """The likeliest first tokens as chat completions say them, and llama.cpp's completions too."""
    content = getattr(logprobs, "content", None) or []
    first = content[0] if content else {}
    top = first.get("top_logprobs", []) if isinstance(first, dict) else first.top_logprobs
    pairs = [
        item if isinstance(item, dict) else {"token": item.token, "logprob": item.logprob} for item in top
    ]
    return {pair["token"]: pair["logprob"] for pair in pairs}


def _said(usage: Any) -> Said | None:
    if usage is None or usage.prompt_tokens is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None)
    return Said(usage.prompt_tokens, usage.completion_tokens or 0, cached)
