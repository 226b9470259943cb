"""A small server that behaves as Ollama's documentation says: its routes, its fields, and how it cuts long prompts.

It serves no model: a reply is the same for the same prompt, and says yes where the prompt's last chunk names the ship's
owner. A token is a run of letters and digits, or another character that is no space.

Sources: https://github.com/ollama/ollama, docs/api.md, docs/openapi.yaml and docs/context-length.mdx.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = re.compile(r"\w+|[^\w\s]")


class Ollama:
    """The server's state.

    Attributes:
        refuses_long: whether it knows ``truncate``; if not, it cuts every prompt to the window in silence.
        tells_count: whether it tells ``prompt_eval_count``.
        tells_cached: whether it tells ``prompt_eval_cached_count``.
        tells_logprobs: whether it tells log-probabilities.
        most: the model's own window, to which it reduces a larger ``num_ctx``.
        counts: how many tokens a prompt has, by its text.
        requests: the path and body of each request.
        port: where it listens.
        says: the words of every reply, if they do not depend on the prompt.
    """

    def __init__(self) -> None:
        self.refuses_long = True
        self.tells_count = True
        self.tells_cached = True
        self.tells_logprobs = True
        self.most = 8192
        self.counts: Any = lambda text: len(TOKEN.findall(text))
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.kept = ""  # the one prompt in its cache
        self.port = 0
        self.says: list[str] | None = None

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The body of each request."""
        return [body for _, body in self.requests]

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        """The status and the lines of a reply."""
        self.requests.append((path, body))
        if path == "/api/show":
            return 200, [{"model_info": {"general.architecture": "llama", "llama.context_length": 8192}}]
        chat, options = path == "/api/chat", body.get("options", {})
        prompt = "\n".join(turn["content"] for turn in body["messages"]) if chat else body["prompt"]
        window, count = min(self.most, options.get("num_ctx", 4096)), self.counts(prompt)
        if count > window:
            if self.refuses_long and body.get("truncate") is False:
                return 400, [{"error": "the input length exceeds the context length"}]
            count = window // 2
        words = self._words(prompt)[: options.get("num_predict", 128)]
        lines = [self._line(word, chat=chat, body=body) for word in words]
        shared = next(
            (at for at, (one, other) in enumerate(zip(self.kept, prompt, strict=False)) if one != other),
            min(len(self.kept), len(prompt)),
        )
        self.kept = prompt
        last = self._line("", chat=chat, body={})
        last |= {"done": True, "done_reason": "stop", "eval_count": len(words)}
        if self.tells_count:
            last["prompt_eval_count"] = count
        if self.tells_cached:
            last["prompt_eval_cached_count"] = min(self.counts(prompt[:shared]), count - 1)
        return 200, [*lines, last]

    def _words(self, prompt: str) -> list[str]:
        if self.says is not None:
            return self.says
        return ["YES", ":", " Elsa", " Brandt", " owned", " it", "."] if "Elsa" in prompt else ["NO", "."]

    def _line(self, text: str, *, chat: bool, body: dict[str, Any]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
        line = {"model": "m", "created_at": "2026-01-01T00:00:00Z", **said, "done": False}
        if self.tells_logprobs and body.get("logprobs"):
            top = [
                {"token": text, "logprob": -0.1, "bytes": []},
                {"token": "NO", "logprob": -2.5, "bytes": []},
            ]
            line["logprobs"] = [{**top[0], "top_logprobs": top[: body.get("top_logprobs", 0)]}]
        return line


class _Handler(BaseHTTPRequestHandler):
    ollama: Ollama

    def do_GET(self) -> None:
        about = {
            "/api/version": {"version": "0.33.0"},
            "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "library"}]},
        }.get(self.path)
        self._send(404 if about is None else 200, [about or {"error": "not found"}])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(*self.ollama.reply(self.path, body))

    def _send(self, status: int, lines: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.send_response(status)
        kind = "application/x-ndjson" if len(lines) > 1 else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def ollama() -> Iterator[Ollama]:
    """A server that runs in a thread of its own."""
    state = Ollama()
    handler = type("Handler", (_Handler,), {"ollama": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join(10)
