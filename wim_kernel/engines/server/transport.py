"""Sends HTTP requests to a server, limits their number, and makes errors of failures; see `loop` for where they run."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai

from wim_kernel.common import forks
from wim_kernel.common.errors import ServerError
from wim_kernel.engines.server.deltas import StreamDelta, parse_event
from wim_kernel.engines.server.loop import keep_from_parent

Item = TypeVar("Item")
COOLDOWN_SECONDS = 30.0
"""Seconds for which a server that failed gets no requests, if there are others."""
NO_KEY = "none"
"""The key that is sent if the user has none."""


class Server:
    """One server.

    Args:
        base_url: URL of the API, with ``/v1``.
        api_key: key that is sent to this server alone; by default the environment's ``OPENAI_API_KEY``.
        timeout: seconds without data after which a request has failed.
        concurrency: most requests at a time.

    Attributes:
        name: the URL without a user's name and password, for messages.
        running: number of requests in flight.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout: float, concurrency: int) -> None:
        self.base_url = base_url.rstrip("/")
        self.name = _without_login(self.base_url)
        self.timeout = timeout
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY
        self.concurrency = concurrency
        self._down_until = 0.0
        self._client: openai.AsyncOpenAI | None = None
        self._limiter: asyncio.Semaphore | None = None
        self.running = 0
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Drop connections and requests in flight, which are the parent's."""
        keep_from_parent(self._client)
        self._client, self._limiter, self.running = None, None, 0

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The API client; made when first needed."""
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=self._api_key,
                timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
                max_retries=0,  # `Requests.attempts` retries
                # a redirect could take the key elsewhere
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            )
        return self._client

    def __repr__(self) -> str:
        return f"Server({self.name!r})"

    @property
    def is_down(self) -> bool:
        """Whether the server has failed within `COOLDOWN_SECONDS`."""
        return time.monotonic() < self._down_until

    def mark_failed(self) -> None:
        """Prefer other servers for `COOLDOWN_SECONDS`."""
        self._down_until = time.monotonic() + COOLDOWN_SECONDS

    def admit(self, requests: int) -> None:
        """Admit at least so many requests at a time, from the next one on."""
        if requests > self.concurrency:
            self.concurrency, self._limiter = requests, None

    @property
    def limiter(self) -> asyncio.Semaphore:
        """Admits `concurrency` requests at a time, first come, first served."""
        if self._limiter is None:
            self._limiter = asyncio.Semaphore(self.concurrency)
        return self._limiter

    async def get(self, path: str) -> Any:
        """The JSON at a path next to the API's; None if the request fails."""
        status, found = await self._request_json("GET", path)
        return found if status is not None and 200 <= status < 300 else None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int | None, Any]:
        """Post JSON to a path next to the API's.

        Returns:
            The status, or None if there was no answer, and the JSON of the reply, or None if it is not JSON.
        """
        return await self._request_json("POST", path, body)

    async def _request_json(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int | None, Any]:
        url = self._beside_api(path)
        headers = {"Authorization": f"Bearer {self.client.api_key}"}
        timeout = 10.0 if body is None else self.timeout
        for _ in range(2):  # a kept-alive connection may have been closed
            try:
                answer = await self.client._client.request(
                    method, url, json=body, headers=headers, timeout=timeout
                )
            except Exception:  # the transport may raise anything: no answer came
                continue
            try:
                return answer.status_code, answer.json()
            except ValueError:
                return answer.status_code, None
        return None, None

    def _beside_api(self, path: str) -> str:
        return self.base_url.removesuffix("/v1") + path

    async def models(self) -> list[dict[str, Any]]:
        """The models that the server lists.

        Raises:
            ServerError: if they cannot be listed.
        """
        try:
            found = [model.model_dump() async for model in self.client.models.list()]
            return [model for model in found if isinstance(model.get("id"), str)]
        except Exception as error:  # includes what the client raises for a reply that is no list of models
            raise self.error("its models could not be listed", error) from self._safe_cause(error)

    async def stream(
        self, fields: dict[str, Any], extra: dict[str, Any]
    ) -> AsyncGenerator[StreamDelta, None]:
        """Stream a completion; a chat completion if ``fields`` has messages.

        Args:
            fields: fields of the common API.
            extra: fields of the family's own.

        Raises:
            ServerError: if the request fails, or the stream breaks off before its end.
        """
        chat = "messages" in fields
        create: Any = self.client.chat.completions.create if chat else self.client.completions.create
        finished = False
        async with self._limited():
            stream = await create(**fields, stream=True, extra_body=extra)
            async with stream:
                async for event in stream:
                    delta = parse_event(event, self.base_url, chat=chat)
                    finished = finished or delta.finish is not None
                    yield delta
        if not finished:
            raise self.error("an answer broke off before its end", None)

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Post JSON to a path next to the API's, as one of the requests that are limited in number.

        Raises:
            ServerError: if the request fails.
        """
        async with self._limited():
            return await self.client.post(self._beside_api(path), cast_to=object, body=body)

    async def lines(self, path: str, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Post JSON to a path next to the API's; yields the lines of the reply as they come.

        Raises:
            ServerError: if the request fails.
        """
        headers = {"Authorization": f"Bearer {self.client.api_key}"}
        http, url = self.client._client, self._beside_api(path)
        async with (
            self._limited(),
            http.stream("POST", url, json=body, headers=headers, timeout=self.timeout) as answer,
        ):
            if answer.is_error:
                text = (await answer.aread()).decode(errors="replace")
                raise _Status(answer, text)
            async for line in answer.aiter_lines():
                if line.strip():
                    yield line

    def short_prompt(self, read: int, sent: int, window: int) -> ServerError:
        """The error for a prompt of which the server read too few tokens."""
        what = (
            f"it read {read:,} tokens of a prompt of {sent:,} and cut the rest, in a window of {window:,} tokens: give "
            "from_server a larger window=, or read a shorter document"
        )
        return ServerError(self.name, what, passing=False)

    def parsed(self, parse: Callable[[], Item]) -> Item:
        """What ``parse`` makes of a reply; whatever it raises becomes a `ServerError`."""
        try:
            return parse()
        except Exception as error:  # a reply may be anything
            raise self.error("a request failed", error) from self._safe_cause(error)

    @asynccontextmanager
    async def _limited(self) -> AsyncGenerator[None, None]:
        """Wait for the limiter; within the context, every exception becomes a `ServerError`."""
        async with self.limiter:
            self.running += 1
            try:
                yield
            except Exception as error:  # also in the middle of a stream, or for a reply that is not JSON
                raise self.error("a request failed", error) from self._safe_cause(error)
            finally:
                self.running -= 1

    def error(self, what: str, error: Exception | None) -> ServerError:
        """The error for a failed request, with a message that never contains the key."""
        status = getattr(error, "status_code", None)
        detail = (
            f" ({type(error).__name__}{f', status {status}' if status else ''}: {self._redacted(error)})"
            if error
            else ""
        )
        passing = status is None or status in (408, 409, 429) or status >= 500
        found = ServerError(self.name, what + detail, status=status, passing=passing)
        headers = getattr(getattr(error, "response", None), "headers", {})
        found.retry_after = _seconds(headers.get("retry-after"))
        return found

    def _redacted(self, error: Exception) -> str:
        """An error's message without the key, which a server may have sent back in it."""
        text = str(error)
        if self.client.api_key != NO_KEY:
            text = text.replace(self.client.api_key, "[the key]")
        return " ".join(text.split())[:300]

    def _safe_cause(self, error: Exception) -> Exception | None:
        """The error as a cause for the traceback; None if its message contains the key."""
        return error if self.client.api_key == NO_KEY or self.client.api_key not in str(error) else None


class _Status(Exception):
    """A reply with an error's status.

    Args:
        response: the response.
        text: its text.
    """

    def __init__(self, response: Any, text: str) -> None:
        super().__init__(text[:300])
        self.response = response
        self.status_code: int = response.status_code


def _seconds(text: str | None) -> float:
    try:
        return min(60.0, max(0.0, float(text or 0)))
    except ValueError:  # a date
        return 0.0


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
