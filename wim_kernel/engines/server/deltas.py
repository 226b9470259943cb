"""Streamed completions, piece by piece: what servers say in them, whatever they leave out or say wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Piece:
    """One piece of a streamed completion.

    Attributes:
        text: what is new.
        token_ids: its tokens, where the server says them.
        finish: why the text ended, in the last piece that has text to it.
        top: the likeliest tokens at this place, as text, with their log-probabilities.
        usage: what the server says of the request, in one of the last pieces.
        likelihoods: log-probabilities of tokens of the prompt, where those were asked for.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: str | None = None
    top: dict[str, float] = field(default_factory=dict)
    usage: Said | None = None
    likelihoods: tuple[float, ...] = ()


@dataclass(frozen=True)
class Said:
    """What a server says of a request.

    Attributes:
        prompt: tokens of the prompt.
        output: tokens generated.
        cached: tokens of the prompt that were in its cache; None if it does not say.
        by: which server, by its base URL.
    """

    prompt: int
    output: int
    cached: int | None
    by: str


def piece_of(event: Any, by: str, *, chat: bool) -> Piece:
    """What an event of a stream says; of a chat completion's stream, or a completion's."""
    choice = event.choices[0] if event.choices else None
    if choice is None:
        return Piece(usage=_said(event.usage, by))
    text = choice.delta.content if chat else choice.text
    logprobs, ids = getattr(choice, "logprobs", None), getattr(choice, "token_ids", None)
    top = getattr(logprobs, "top_logprobs", None) or [None]
    first = _numbers(dict(top[0] or {})) or _first_of_content(logprobs)
    return Piece(
        text or "", _without_stop(ids or (), choice), choice.finish_reason, first, _said(event.usage, by)
    )


def piece_of_likelihoods(answer: Any, scored: int, by: str) -> Piece:
    """What ``/generate`` tells: [log-probability, token, text] of a prompt's last tokens, and of what may come next.

    Args:
        answer: its JSON.
        scored: of how many of the prompt's tokens, behind one more, they were asked for.
        by: which server, by its base URL.

    Raises:
        ValueError: if there are not so many, or they are not numbers.
    """
    about = answer["meta_info"]
    of_prompt = about.get("input_token_logprobs") or []
    of_next = (about.get("output_token_ids_logprobs") or [[]])[0]
    found = [item[0] for item in of_prompt[-scored:]] if scored else []
    numbers = [*found, *(item[0] for item in of_next)]
    if len(found) != scored or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("the likelihoods that were asked for were not told")
    top = {name_of(item[1]): float(item[0]) for item in of_next}
    said = _counted(
        about.get("prompt_tokens"), about.get("completion_tokens"), about.get("cached_tokens"), by
    )
    return Piece(finish="length", top=top, usage=said, likelihoods=tuple(found))


def name_of(token: int) -> str:
    """What a token is called where its text may be another's too."""
    return f"token_id:{token}"


def _without_stop(ids: Sequence[int], choice: Any) -> tuple[int, ...]:
    """Tokens without the one that the text was stopped by, where the server says that one did."""
    stops = [getattr(choice, name, None) for name in ("stop_reason", "matched_stop")]
    stopped = ids and ids[-1] in [stop for stop in stops if isinstance(stop, int)]
    return tuple(ids[:-1] if stopped else ids)


def _first_of_content(logprobs: Any) -> dict[str, float]:
    """The likeliest first tokens as chat completions say them, and llama.cpp's completions too."""
    content = getattr(logprobs, "content", None) or []
    first = content[0] if content else {}
    top = (first.get("top_logprobs") if isinstance(first, dict) else first.top_logprobs) or []
    pairs = [
        item if isinstance(item, dict) else {"token": item.token, "logprob": item.logprob} for item in top
    ]
    return _numbers({pair.get("token"): pair.get("logprob") for pair in pairs})


def _numbers(top: Mapping[Any, Any]) -> dict[str, float]:
    """The log-probabilities that are numbers, of tokens that have a name."""
    return {
        token: float(logprob)
        for token, logprob in top.items()
        if isinstance(token, str) and isinstance(logprob, int | float)
    }


def _said(usage: Any, by: str) -> Said | None:
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    prompt, output = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    return _counted(prompt, output, cached, by)


def _counted(prompt: Any, output: Any, cached: Any, by: str) -> Said | None:
    """Counts, where they are counts, that fit each other."""
    if not isinstance(prompt, int):
        return None
    found = min(max(0, cached), prompt) if isinstance(cached, int) else None
    return Said(prompt, output if isinstance(output, int) else 0, found, by)
