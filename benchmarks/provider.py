"""A provider of chat models on this machine: it speaks OpenAI's two and Anthropic's protocol, and bills like them.

Or it is a server behind OpenAI's protocol, as vLLM is: such a server caches blocks by itself, and a schema is no part
of the prompt there. ``"none"`` caches nothing, and says so.

It has no model. A reply is made of the prompt: a rating of the newest passage by the words that it shares with the
question, with its best sentence; or a line as an answer. What it keeps of prompts, and what it bills, follows the
documentation of the three caches in `wim_kernel.engines.chat.providers` (read in November 2026). A token is four
characters.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any, Literal

Rules = Literal["anthropic", "openai", "openai-automatic", "openai-compatible", "none"]
LEAST = 1024  # tokens of the shortest prefix that is cached
STEP = 128  # tokens: OpenAI's automatic cache gives prefixes in such steps
BLOCK = 16  # tokens of a block of the cache of vLLM, which caches whole blocks
LOOKBACK = 20  # blocks before a breakpoint at which Anthropic looks for an entry
MARKS = 4


def tokens(characters: int) -> int:
    """How many tokens so many characters are."""
    return -(-characters // 4)


@dataclass
class Bill:
    """What a request cost, in tokens: ``plain`` input, what was read from and written to the cache, and output."""

    plain: int
    read: int = 0
    written: int = 0
    output: int = 0


@dataclass
class Cache:
    """The cache of one provider.

    Attributes:
        rules: whose rules it follows.
        entries: the prefixes that it holds, with OpenAI's key in front.
    """

    rules: Rules
    entries: set[tuple[str, str]] = field(default_factory=set)

    def bill(self, pieces: list[tuple[str, bool]], key: str) -> tuple[Bill, list[tuple[str, str]]]:
        """A request's bill without its output, and the entries that are there once its reply begins.

        Args:
            pieces: the prompt in order (tools or schema, system, blocks), each with whether its end is a breakpoint.
            key: OpenAI's ``prompt_cache_key``.
        """
        texts, marked = (
            [text for text, _ in pieces],
            [number for number, (_, mark) in enumerate(pieces) if mark],
        )
        ends = list(accumulate(texts))
        total = tokens(len(ends[-1]))
        if self.rules == "none":
            return Bill(total), []
        if self.rules in ("openai-automatic", "openai-compatible"):
            least, step = (LEAST, STEP) if self.rules == "openai-automatic" else (BLOCK, BLOCK)
            shared = max((_common(ends[-1], known) for own, known in self.entries if own == key), default=0)
            read = tokens(shared) // step * step
            read = min(read, total - 1) if read >= least else 0
            return Bill(total - read, read), [(key, ends[-1])]
        assert len(marked) <= MARKS, "a request may have four breakpoints"
        reach = LOOKBACK if self.rules == "anthropic" else 1
        looked = {number for mark in marked for number in range(max(0, mark - reach + 1), mark + 1)}
        found = max((number for number in looked if (key, ends[number]) in self.entries), default=None)
        read = 0 if found is None else tokens(len(ends[found]))
        writes = [number for number in marked if tokens(len(ends[number])) >= LEAST]
        last = tokens(len(ends[writes[-1]])) if writes else 0
        written = max(0, last - read)
        return Bill(total - read - written, read, written), [(key, ends[number]) for number in writes]


def _common(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


@dataclass
class Request:
    """A request as it came: its path, its body, when it came, and its bill."""

    path: str
    body: dict[str, Any]
    came: float
    bill: Bill
    begun: float = 0.0


class Provider:
    """The provider, listening on a port of this machine.

    Attributes:
        cache: its cache.
        requests: the requests so far, in the order in which they came.
        delay: seconds before a reply begins.
        piece_delay: seconds before each further piece of a streamed reply.
        replies: replies to give in place of its own, the next one first.
        failures: statuses to refuse the next requests with.
        closed: how many streams the client closed before their end.
    """

    def __init__(self, rules: Rules) -> None:
        self.cache = Cache(rules)
        self.requests: list[Request] = []
        self.delay = self.piece_delay = 0.0
        self.replies: list[str] = []
        self.failures: list[int] = []
        self.closed = 0
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listen; the context's value is the address."""
        provider = self

        class Handler(_Handler):
            owner = provider

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def total(self, since: int = 0) -> Bill:
        """The sum of the bills of the requests from number ``since`` on."""
        bills = [request.bill for request in self.requests[since:]]
        sums = [sum(getattr(bill, name) for bill in bills) for name in ("plain", "read", "written", "output")]
        return Bill(*sums)


class _Handler(BaseHTTPRequestHandler):
    owner: Provider
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner, protocol = self.owner, self.path.rpartition("/")[2]
        speaks = {"messages": _anthropic, "responses": _responses}.get(protocol, _openai)
        with owner.lock:
            if owner.failures:
                self._send(
                    owner.failures.pop(0), {"error": {"type": "refused", "message": "refused as asked"}}
                )
                return
            pieces, key = speaks.pieces(body)
            if owner.cache.rules != "openai-compatible":
                pieces = [
                    *((json.dumps(body[name]), False) for name in speaks.front if body.get(name)),
                    *pieces,
                ]
            bill, entries = owner.cache.bill(pieces, key)
            request = Request(self.path, body, time.monotonic(), bill)
            owner.requests.append(request)
            schema = speaks.schema(body)
            reply = owner.replies.pop(0) if owner.replies else reply_to([text for text, _ in pieces], schema)
        bill.output = tokens(len(reply))
        time.sleep(owner.delay)
        with owner.lock:
            owner.cache.entries.update(entries)  # there once the reply begins
            request.begun = time.monotonic()
        if not body.get("stream"):
            self._send(200, speaks.whole(body, reply, bill, schema))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number, event in enumerate(speaks.stream(body, reply, bill)):
                time.sleep(owner.piece_delay if number else 0)
                self.wfile.write(event.encode())
                self.wfile.flush()
        except OSError:
            owner.closed += 1
        self.close_connection = True

    def _send(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# -- replies --------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w{4,}")


def reply_to(pieces: list[str], schema: dict[str, Any] | None) -> str:
    """A reply to a prompt: a rating with quotations or a note, data of a schema, or a line."""
    *_, newest, asks = ["", *pieces]
    if (at := asks.rfind("\n\nQuestion about")) > 0:  # LlamaIndex sends the blocks as one text
        newest, asks = asks[:at], asks[at:]
    if '"relevance"' not in asks and not (schema and "relevance" in schema.get("properties", {})):
        return "{}" if schema else "Elsa Brandt owned the Aurora. That is what it says."
    found = re.search(r"Question about the document above: (.*)", asks)
    wanted = {word.lower() for word in _WORD.findall(found.group(1) if found else "")}
    sentences = re.split(r"(?<=[.!?])\s+", newest)
    best = max(
        sentences, key=lambda sentence: len(wanted & {word.lower() for word in _WORD.findall(sentence)})
    )
    shared = len(wanted & {word.lower() for word in _WORD.findall(best)})
    rating = min(10, 4 * shared) if shared > 1 else 0
    quotes = '"quotes"' in asks or bool(schema and "quotes" in schema.get("properties", {}))
    said: dict[str, Any] = (
        {"quotes": [best.strip()] if rating else []} if quotes else {"note": best if rating else ""}
    )
    return json.dumps({"relevance": rating, **said})


def _text(content: Any) -> list[tuple[str, bool]]:
    if isinstance(content, str):
        return [(content, False)]
    return [
        (block["text"], "cache_control" in block or "prompt_cache_breakpoint" in block)
        for block in content
        if block.get("type", "text") in ("text", "input_text")
    ]


class _openai:
    """OpenAI's chat completions."""

    front = ("tools", "response_format")

    @staticmethod
    def pieces(body: dict[str, Any]) -> tuple[list[tuple[str, bool]], str]:
        """The prompt behind the schemas of tools and reply, and the cache's key."""
        pieces = [piece for message in body["messages"] for piece in _text(message["content"])]
        return pieces, body.get("prompt_cache_key", "")

    @staticmethod
    def schema(body: dict[str, Any]) -> dict[str, Any] | None:
        """The reply's schema, if it has one."""
        if body.get("tools"):
            return body["tools"][0]["function"]["parameters"]
        return (body.get("response_format") or {}).get("json_schema", {}).get("schema")

    @staticmethod
    def _usage(bill: Bill) -> dict[str, Any]:
        prompt = bill.plain + bill.read + bill.written
        return {
            "prompt_tokens": prompt,
            "completion_tokens": bill.output,
            "total_tokens": prompt + bill.output,
            "prompt_tokens_details": {"cached_tokens": bill.read, "cache_write_tokens": bill.written},
        }

    @classmethod
    def whole(cls, body: dict[str, Any], reply: str, bill: Bill, schema: Any) -> dict[str, Any]:
        """A reply in one."""
        message: dict[str, Any] = {"role": "assistant", "content": reply}
        if body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": reply}
            message |= {
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            **cls._common(body),
            "object": "chat.completion",
            "choices": [choice],
            "usage": cls._usage(bill),
        }

    @classmethod
    def stream(cls, body: dict[str, Any], reply: str, bill: Bill) -> Iterator[str]:
        """A reply in pieces."""
        common = {**cls._common(body), "object": "chat.completion.chunk"}
        for piece in re.findall(r"\s*\S+|\s+$", reply):
            yield _event(
                {**common, "choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}}]}
            )
        yield _event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event({**common, "choices": [], "usage": cls._usage(bill)})
        yield "data: [DONE]\n\n"

    @staticmethod
    def _common(body: dict[str, Any]) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "created": 1, "model": body["model"]}


class _responses:
    """OpenAI's responses."""

    front = ("text",)

    @staticmethod
    def pieces(body: dict[str, Any]) -> tuple[list[tuple[str, bool]], str]:
        """The prompt behind the reply's format, and the cache's key."""
        pieces = [piece for message in body["input"] for piece in _text(message["content"])]
        return pieces, body.get("prompt_cache_key", "")

    @staticmethod
    def schema(body: dict[str, Any]) -> dict[str, Any] | None:
        """The reply's schema, if it has one."""
        return (body.get("text") or {}).get("format", {}).get("schema")

    @staticmethod
    def whole(body: dict[str, Any], reply: str, bill: Bill, schema: Any) -> dict[str, Any]:
        """A reply in one."""
        prompt = bill.plain + bill.read + bill.written
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": bill.read, "cache_write_tokens": bill.written},
            "output_tokens": bill.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + bill.output,
        }
        content = [{"type": "output_text", "text": reply, "annotations": []}]
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": body["model"],
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }

    @classmethod
    def stream(cls, body: dict[str, Any], reply: str, bill: Bill) -> Iterator[str]:
        """A reply in pieces."""
        done = cls.whole(body, reply, bill, None)
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**done, "status": "in_progress", "output": []}},
            *(
                {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
                for piece in re.findall(r"\s*\S+|\s+$", reply)
            ),
            {"type": "response.completed", "response": done},
        ]
        for number, event in enumerate(events):
            yield _event({**event, "sequence_number": number}, str(event["type"]))


class _anthropic:
    """Anthropic's messages."""

    front = ("tools", "tool_choice", "output_config")

    @staticmethod
    def pieces(body: dict[str, Any]) -> tuple[list[tuple[str, bool]], str]:
        """The prompt behind tools and their choice: the system prompt, then the messages."""
        system = _text(body["system"]) if body.get("system") else []
        rest = [piece for message in body["messages"] for piece in _text(message["content"])]
        assert all(text.strip() for text, _ in rest), "text content blocks must have text"
        return [*system, *rest], ""

    @staticmethod
    def schema(body: dict[str, Any]) -> dict[str, Any] | None:
        """The reply's schema, if it has one."""
        return body["tools"][0]["input_schema"] if body.get("tools") else None

    @staticmethod
    def _usage(bill: Bill) -> dict[str, Any]:
        return {
            "input_tokens": bill.plain,
            "output_tokens": bill.output,
            "cache_read_input_tokens": bill.read,
            "cache_creation_input_tokens": bill.written,
        }

    @classmethod
    def whole(cls, body: dict[str, Any], reply: str, bill: Bill, schema: Any) -> dict[str, Any]:
        """A reply in one."""
        content: list[dict[str, Any]] = [{"type": "text", "text": reply}]
        if schema:
            name = body["tools"][0]["name"]
            content = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(reply)}]
        return {
            **cls._message(body),
            "content": content,
            "stop_reason": "end_turn",
            "usage": cls._usage(bill),
        }

    @classmethod
    def stream(cls, body: dict[str, Any], reply: str, bill: Bill) -> Iterator[str]:
        """A reply in pieces."""
        begin = {
            **cls._message(body),
            "content": [],
            "stop_reason": None,
            "usage": {**cls._usage(bill), "output_tokens": 1},
        }
        yield _event({"type": "message_start", "message": begin}, "message_start")
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield _event(block, "content_block_start")
        for piece in re.findall(r"\s*\S+|\s+$", reply):
            delta = {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": piece},
            }
            yield _event(delta, "content_block_delta")
        yield _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": end, "usage": cls._usage(bill)}, "message_delta")
        yield _event({"type": "message_stop"}, "message_stop")

    @staticmethod
    def _message(body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "stop_sequence": None,
        }


def _event(data: dict[str, Any], name: str = "") -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"
