"""Ollama's own API: a window for every request, and a check that the whole prompt was read.

Over ``/v1`` Ollama ignores ``num_ctx`` and cuts longer prompts without a word. ``/api/generate`` and ``/api/chat`` take
``num_ctx`` among their options, and their last line has ``prompt_eval_count``, the number of tokens of the prompt.

Source: https://github.com/ollama/ollama, docs/api.md and docs/openapi.yaml. Log-probabilities came with version
0.12.11, ``prompt_eval_cached_count`` after 0.32; versions without them leave the fields out.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from wim_kernel.engines.server.deltas import StreamDelta, checked_counts
from wim_kernel.engines.server.transport import Server

DEFAULT_WINDOW = 32_768
"""Most tokens of a context if the caller names none; not the model's own, because Ollama allocates room for all."""
SPARE = 4
"""Tokens by which the server's count of a prompt may be below ours: those that begin a text."""
LEAST_SHARE = 4
"""Without a tokenizer the server's count may be this many times below the estimate before the prompt counts as cut."""

_unchecked = weakref.WeakSet[Server]()  # servers about which a warning was given


async def about(server: Server, model: str) -> dict[str, Any]:
    """What the server says about a model; empty if it says nothing."""
    status, found = await server.post("/api/show", {"model": model})
    return found if status == 200 and isinstance(found, dict) else {}


async def window_of(server: Server, model: str) -> int:
    """The window to ask for: the model's own, but at most `DEFAULT_WINDOW` tokens."""
    info = (await about(server, model)).get("model_info")
    lengths = [
        length
        for name, length in (info if isinstance(info, dict) else {}).items()
        if name.endswith(".context_length") and isinstance(length, int) and length > 0
    ]
    return min([DEFAULT_WINDOW, *lengths])


def path_of(fields: Mapping[str, Any]) -> str:
    """The path of a request, by the common API's fields."""
    return "/api/chat" if "messages" in fields else "/api/generate"


def body_of(fields: Mapping[str, Any], extra: Mapping[str, Any], window: int) -> dict[str, Any]:
    """The body of a request.

    Args:
        fields: the fields of the common API; a text prompt is the whole prompt, to which no template is applied.
        extra: other fields: options of Ollama's, and ``format``.
        window: the window to ask for, in tokens.
    """
    options = {name: value for name, value in extra.items() if name != "format"}
    options |= {"num_ctx": window, "num_predict": fields["max_tokens"]}
    options |= {name: fields[name] for name in ("temperature", "top_p", "stop") if name in fields}
    # Versions that know these fields refuse a prompt that is too long; others ignore them.
    body: dict[str, Any] = {"model": fields["model"], "stream": True, "truncate": False, "shift": False}
    if "messages" in fields:
        body |= {"messages": fields["messages"], "think": False}
    else:
        body |= {"prompt": fields["prompt"], "raw": True}
    if "format" in extra:
        body["format"] = extra["format"]
    if fields.get("logprobs"):
        most = fields.get("top_logprobs", fields["logprobs"])
        body |= {"logprobs": True, "top_logprobs": most}
    return {**body, "options": options}


async def stream(
    server: Server, body: dict[str, Any], path: str, sent: int, *, exact: bool
) -> AsyncGenerator[StreamDelta, None]:
    """Stream a reply.

    Args:
        server: the server.
        body: the body of the request.
        path: its path.
        sent: number of ids of the prompt.
        exact: whether these are the model's tokens, and not an estimate.

    Raises:
        ServerError: if the request fails, breaks off, or the server did not read the whole prompt.
    """
    finished = False
    async for line in server.lines(path, body):
        event = server.parsed(lambda line=line: _object(line))  # type: ignore[misc]
        if "error" in event:
            raise server.error(f"it answered: {str(event['error'])[:300]}", None)
        delta = server.parsed(lambda event=event: _delta(event, server.base_url))  # type: ignore[misc]
        if delta.usage is not None:
            read, least = delta.usage.prompt_tokens, sent - SPARE if exact else sent // LEAST_SHARE
            if read < least:
                window = body["options"]["num_ctx"]
                raise server.short_prompt(read, sent, window)
        elif sent and event.get("done"):
            _warn_once(server)
        finished = finished or delta.finish is not None
        yield delta
    if not finished:
        raise server.error("an answer broke off before its end", None)


def _warn_once(server: Server) -> None:
    if server not in _unchecked:
        _unchecked.add(server)
        warnings.warn(
            f"The server at {server.name} does not say how many tokens of a prompt it read, so prompts that it cuts "
            "go unnoticed: use a newer version of Ollama.",
            stacklevel=2,
        )


def _object(line: str) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("a line is no JSON object")
    return found


def _delta(event: Mapping[str, Any], server: str) -> StreamDelta:
    message = event.get("message")
    text = message.get("content") if isinstance(message, dict) else event.get("response")
    top: dict[str, float] = {}
    for item in (event.get("logprobs") or [{}])[:1]:
        told = [item, *(item.get("top_logprobs") or [])]
        top = {each["token"]: float(each["logprob"]) for each in told if "logprob" in each}
    usage = None
    if event.get("done"):
        cached = event.get("prompt_eval_cached_count")
        usage = checked_counts(event.get("prompt_eval_count"), event.get("eval_count"), cached, server)
    reason = event.get("done_reason") or "stop" if event.get("done") else None
    return StreamDelta(text or "", finish=reason, top=top, usage=usage)
