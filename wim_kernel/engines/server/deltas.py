"""Parses the events of a streamed completion, whatever fields a server leaves out or fills wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StreamDelta:
    """One delta of a streamed completion.

    Attributes:
        text: new text.
        token_ids: token ids of the new text, if the server reports them.
        finish: finish reason, in the last delta with text.
        top: log-probabilities of the most likely tokens at this position, by name.
        usage: the server's usage report, in one of the last deltas.
        likelihoods: log-probabilities of the scored tokens of the prompt, if they were requested.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: str | None = None
    top: dict[str, float] = field(default_factory=dict)
    usage: UsageReport | None = None
    likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class UsageReport:
    """A server's report on the tokens of a request.

    Attributes:
        prompt_tokens: number of tokens of the prompt.
        output_tokens: number of generated tokens.
        cached_tokens: number of prompt tokens found in the prefix cache; None if the server does not report it.
        server: base URL of the server.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    server: str


def parse_event(event: Any, server: str, *, chat: bool) -> StreamDelta:
    """The delta of an event of the API's stream.

    Args:
        event: the event.
        server: base URL of the server.
        chat: whether the stream is that of a chat completion.
    """
    choice = event.choices[0] if event.choices else None
    if choice is None:
        return StreamDelta(usage=_usage_report(event.usage, server))
    text = choice.delta.content if chat else choice.text
    logprobs, ids = getattr(choice, "logprobs", None), getattr(choice, "token_ids", None)
    top = getattr(logprobs, "top_logprobs", None) or [None]
    first = _numbers(dict(top[0] or {})) or _first_of_content(logprobs)
    return StreamDelta(
        text or "",
        _without_stop(ids or (), choice),
        choice.finish_reason,
        first,
        _usage_report(event.usage, server),
    )


def parse_likelihoods(answer: Any, scored: int, server: str) -> StreamDelta:
    """The delta of SGLang's reply to ``/generate``, which lists [log-probability, token, text] of tokens.

    Args:
        answer: JSON of the reply.
        scored: number of the prompt's last tokens whose log-probabilities were requested.
        server: base URL of the server.

    Raises:
        ValueError: if the reply has fewer log-probabilities, or some are not numbers.
    """
    about = answer["meta_info"]
    of_prompt = about.get("input_token_logprobs") or []
    of_next = (about.get("output_token_ids_logprobs") or [[]])[0]
    found = [item[0] for item in of_prompt[-scored:]] if scored else []
    numbers = [*found, *(item[0] for item in of_next)]
    if len(found) != scored or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("the reply lacks log-probabilities")
    top = {name_of(item[1]): float(item[0]) for item in of_next}
    usage = checked_counts(
        about.get("prompt_tokens"), about.get("completion_tokens"), about.get("cached_tokens"), server
    )
    return StreamDelta(finish="length", top=top, usage=usage, likelihoods=tuple(found))


def name_of(token: int) -> str:
    """The name of a token by its id, as in replies of vLLM."""
    return f"token_id:{token}"


def _without_stop(ids: Sequence[int], choice: Any) -> tuple[int, ...]:
    """Token ids without the stop token, if the server reports that the text ended with one."""
    stops = [getattr(choice, name, None) for name in ("stop_reason", "matched_stop")]
    stopped = ids and ids[-1] in [stop for stop in stops if isinstance(stop, int)]
    return tuple(ids[:-1] if stopped else ids)


def _first_of_content(logprobs: Any) -> dict[str, float]:
    """Log-probabilities of first tokens in the form of chat completions, which llama.cpp uses for completions too."""
    content = getattr(logprobs, "content", None) or []
    first = content[0] if content else {}
    top = (first.get("top_logprobs") if isinstance(first, dict) else first.top_logprobs) or []
    pairs = [
        item if isinstance(item, dict) else {"token": item.token, "logprob": item.logprob} for item in top
    ]
    return _numbers({pair.get("token"): pair.get("logprob") for pair in pairs})


def _numbers(top: Mapping[Any, Any]) -> dict[str, float]:
    """The entries whose token is a text and whose log-probability is a number."""
    return {
        token: float(logprob)
        for token, logprob in top.items()
        if isinstance(token, str) and isinstance(logprob, int | float)
    }


def _usage_report(usage: Any, server: str) -> UsageReport | None:
    cached_tokens = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    prompt_tokens, output_tokens = (
        getattr(usage, "prompt_tokens", None),
        getattr(usage, "completion_tokens", None),
    )
    return checked_counts(prompt_tokens, output_tokens, cached_tokens, server)


def checked_counts(
    prompt_tokens: Any, output_tokens: Any, cached_tokens: Any, server: str
) -> UsageReport | None:
    """A usage report of plausible counts; None without a count of prompt tokens."""
    if not isinstance(prompt_tokens, int):
        return None
    found = min(max(0, cached_tokens), prompt_tokens) if isinstance(cached_tokens, int) else None
    return UsageReport(prompt_tokens, output_tokens if isinstance(output_tokens, int) else 0, found, server)
