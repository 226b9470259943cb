"""Plain chat completions by a kernel's model, for applications that need a language model beside the kernel."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common.errors import ContextOverflowError
from wim_kernel.engines.base import AnyEngine, Branch, Decoded
from wim_kernel.engines.generation import Generation
from wim_kernel.run.decoding import decode_all
from wim_kernel.run.options import Options, parse_options
from wim_kernel.text.run_text import Prompt, Text

Role = Literal["system", "user", "assistant"]
SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. Its text is data: control tokens in it are encoded as plain characters."""

    role: Role
    text: str


@dataclass(frozen=True)
class Completed:
    """A finished reply.

    Attributes:
        text: the whole reply.
        prompt_tokens: how many tokens the prompt had.
        output_tokens: how many tokens were generated.
    """

    text: str
    prompt_tokens: int
    output_tokens: int


def complete(
    cache: PrefixCache, turns: Sequence[Turn], options: Options
) -> Generator[str | Completed, None, None]:
    """Reply to a conversation; yields pieces of the reply's text (some of them empty), then a `Completed`.

    The model's chat template is applied to the turns. A model without a template gets the turns' text.

    Args:
        cache: the kernel's prefix cache; idle prefixes are evicted if memory runs out.
        turns: the conversation.
        options: the kernel's options, of which ``answer_config``, ``answer_tokens`` and ``answer_schema`` are used.
            Fewer tokens are generated if the window has less room.

    Raises:
        ContextOverflowError: if the conversation does not fit the model's window.
    """
    engine, settings = cache.engine, parse_options(options)
    if settings.answer_schema is not None:
        engine.check_schema(settings.answer_schema, settings.answer_config)
    system, prompt = _conversation(engine, turns)
    head = engine.head(system, "")
    branch = Branch(len(head), prompt, json_schema=settings.answer_schema)
    prompt_end = len(head) + len(engine.suffix(branch))
    branch = Branch(
        len(head),
        prompt,
        generation=_fit_window(engine, prompt_end, settings.answer_config),
        json_schema=settings.answer_schema,
    )
    prefix = engine.open()
    engine.reserve(prefix, len(head))
    while prefix.tokens < len(head):
        engine.extend(prefix, [head], 0)
    with closing(decode_all(engine, prefix, [branch], free_memory=cache.evict_idle)) as steps:  # type: ignore[type-var]
        for step in steps:
            yield "".join(progress.text for progress in step)
            for progress in step:
                if progress.done is not None:
                    yield _completed(progress.done, len(head))


def is_chat_model(engine: AnyEngine) -> bool:
    """Whether an engine's model has a chat template; assumed of a server that applies the template itself."""
    codec = _codec(engine)
    return codec is None or bool(codec.seam.chat)


def _completed(done: Decoded, head: int) -> Completed:
    prompt = len(done.suffix_ids) if done.prompt_tokens is None else done.prompt_tokens
    output = len(done.token_ids) if done.output_tokens is None else done.output_tokens
    return Completed(done.text, head + prompt, output)


def _fit_window(engine: AnyEngine, prompt_end: int, config: Generation) -> Generation:
    """The config, with ``max_new_tokens`` limited to the room behind ``prompt_end``, in tokens."""
    if engine.window is None or prompt_end + (config.max_new_tokens or 0) <= engine.window:
        return config
    room = engine.window - prompt_end
    if room < 1:
        raise ContextOverflowError(
            "The conversation",
            prompt_end,
            engine.window - 1,
            "Shorten it, or use a model with a longer window.",
        )
    bounded = copy.deepcopy(config)
    bounded.max_new_tokens = room
    return bounded


def _conversation(engine: AnyEngine, turns: Sequence[Turn]) -> tuple[str, Prompt]:
    """The system prompt, and the prompt from the first turn's text to the last turn's."""
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system") or SYSTEM
    rest = [
        Turn(role, "\n\n".join(turn.text for turn in same))
        for role, same in groupby(
            (turn for turn in turns if turn.role != "system"), key=lambda turn: turn.role
        )
    ]
    if not rest:  # a conversation of a system turn alone
        return SYSTEM, (Text(system),)
    if len(rest) == 1:
        return system, (Text(rest[0].text),)
    between = _template_between(engine, rest)
    if between is None:
        return system, (Text("\n\n".join(f"{turn.role}: {turn.text}" for turn in rest)),)
    runs = [Text(rest[0].text)]
    for lead, turn in zip(between, rest[1:], strict=True):
        runs += [Text(lead, trusted=True), Text(turn.text)]
    return system, tuple(runs)


def _template_between(engine: AnyEngine, turns: Sequence[Turn]) -> list[str] | None:
    """The text that the chat template puts between turns; None if it cannot be determined."""
    codec = _codec(engine)
    if codec is None or not codec.seam.chat or turns[0].role != "user" or turns[-1].role != "user":
        return None
    marks = [f"@@wim-turn-{number}@@" for number in range(len(turns))]
    messages = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
    try:
        rendered = codec.conversation(messages)
    except Exception:  # a template may raise anything: jinja errors, ValueError, ...
        return None
    pieces: list[str] = []
    for mark in marks:
        if rendered.count(mark) != 1:
            return None
        before, _, rendered = rendered.partition(mark)
        pieces.append(before)
    return pieces[1:] if rendered == codec.seam.after else None


def _codec(engine: AnyEngine) -> Any:
    """The engine's tokenizer with its template; None for a server whose tokenizer is not known here."""
    codec = getattr(engine, "codec", None)
    return getattr(codec, "chat_codec", codec)
