"""A small server of completions: the common API alone, and words in place of a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "words"
LIKELY = {"YES": -0.1, "NO": -2.4}
_WORDS = (
    "gull",
    "mast",
    "ship",
    "rain",
    "harbour",
    "fog",
    "town",
    "register",
    "quay",
    "log",
    "year",
    "Aurora",
)


class ChatServer(ThreadingHTTPServer):
    """Lists one model, and streams replies. The same prompt always gets the same words, and every decision is YES.

    Attributes:
        asked: bodies of the requests for completions that came.
        says: the words of every reply, in place of words drawn from the prompt.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.says: list[str] | None = None

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        chat = "messages" in body
        if self.path != ("/v1/chat/completions" if chat else "/v1/completions"):
            self.send_error(404)
            return
        prompt = json.dumps(body["messages" if chat else "prompt"])
        drawn = ["YES", *(f" {word}" for word in _drawn(prompt, body["max_tokens"] - 1))]
        words = drawn if self.server.says is None else self.server.says
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in words:
            said: dict[str, Any] = (
                {"delta": {"role": "assistant", "content": word}} if chat else {"text": word}
            )
            if body.get("logprobs"):
                said["logprobs"] = _chat_logprobs(word) if chat else {"top_logprobs": [LIKELY]}
            self._send_event({"choices": [{"index": 0, **said}]}, chat)
        reason = "length" if self.server.says is None else "stop"
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        self._send_event({"choices": [{"index": 0, "finish_reason": reason, **nothing}]}, chat)
        used = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(words)}
        self._send_event({"choices": [], "usage": {**used, "total_tokens": sum(used.values())}}, chat)
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, found: dict[str, Any]) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_event(self, event: dict[str, Any], chat: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        whole = {"id": "1", "object": kind, "created": 0, "model": MODEL, **event}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _chat_logprobs(word: str) -> dict[str, Any]:
    likely = [{"token": token, "logprob": logprob} for token, logprob in LIKELY.items()]
    return {"content": [{"token": word, "logprob": LIKELY["YES"], "top_logprobs": likely}]}


def _drawn(prompt: str, count: int) -> list[str]:
    """Words that only the prompt decides."""
    digest = hashlib.shake_128(prompt.encode()).digest(max(0, count))
    return [_WORDS[byte % len(_WORDS)] for byte in digest]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server that runs in a thread of its own."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
