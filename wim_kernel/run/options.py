"""The options of one question: their names, types and checks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from wim_kernel.common.margins import Margin
from wim_kernel.engines.generation import Generation, Greedy
from wim_kernel.run.option_checks import check_types
from wim_kernel.run.relevance.scores import RelevanceLike, resolve
from wim_kernel.run.settings import (
    QUOTE_TOKENS,
    AnswerVolume,
    MarginStyle,
    Settings,
    StopRule,
)
from wim_kernel.text.prompts import HOLES, PROMPTS, Prompts, Task
from wim_kernel.text.schemas import grammar_schema

if TYPE_CHECKING:
    from transformers import GenerationConfig

NOTE_TOKENS = 64
ANSWER_TOKENS = 256


class Options(TypedDict, total=False):
    """Keyword arguments of every call with a question.

    Attributes:
        threshold: the relevance from which a chunk's margin is written and kept; 0 writes and keeps all. The default is
            0.25 if relevance is a probability of evidence (a missing note costs more than a needless one), 0.5 with
            other scores, and 0 with ``top_k`` or ``keep``.
        top_k: most margins to keep. Notes are written for the most relevant chunks once all chunks are scored.
        keep: a callback for each written margin; False drops the margin.
        stop_when: a callback on the margins so far, in chunk order; True leaves the rest of the document unread.
            ``"enough"`` asks the model whether the kept notes answer the question.
        stop_after: the number of kept margins after which the rest of the document stays unread.
        relevance: the relevance score. ``"combined"``, the default: attention, shared words and likelihood, as a
            calibrated probability that the chunk holds evidence; ``"attention"``, ``"lexical"`` or ``"passage"``: one
            of these signals; ``"likelihood"``: the rise of the question's likelihood by reading the chunk;
            ``"decision"`` and ``"second-call"``: the paper's scores; ``"rating"``: a chat model's own rating, in the
            reply that holds the note; or a callable on `Evidence`. The default is ``"rating"`` for chat models; for
            other engines that do not see attention it is ``"lexical+passage"``, or ``"lexical+decision"`` without
            likelihoods, after a first look at shared words.
        rounds: how often the document is searched for evidence. From the second round on, the notes found so far go
            into the question's prompt, so that evidence in other words than the question's is found, too. No chunk is
            read again.
        margin_style: ``"verbatim"``, whole sentences of the chunk, the default if the engine sees attention (a chat
            model quotes, and its quotations are located in the chunk); or
            ``"free"``, the model's own words, the default otherwise and with a margin prompt of the caller's own.
        task: ``"answer"`` or ``"summarise"``. The question of a summary may be empty.
        prompts: the prompts of the task; by default `PROMPTS`.
        variables: the values of further ``{name}`` holes in the caller's own prompts.
        margin_config: the generation config of free margins; by default greedy, 64 tokens. For verbatim margins,
            ``max_new_tokens`` limits the sentences chosen: 128 by default.
        answer_config: the generation config of the answer; by default greedy, 256 tokens.
        margin_tokens: most tokens of a margin; overrides ``margin_config``.
        answer_tokens: most tokens of the answer; overrides ``answer_config``.
        answer_schema: a JSON schema. The answer is complete JSON that fits it.
        citations: whether the answer cites the kept margins, which then have numbers in its prompt, by markers such as
            ``[1]``; see `WimResult.citations`. False by default. An answer of a schema has none.
        answer_volume: the volume behind which the answer is written, if a document is longer than the window; the kept
            margins of all volumes are in its prompt. ``"most-relevant"``, the default: the volume with the most
            relevant kept margin, or the last one if the kept margins do not all fit there; ``"last"``: the last one.
        margin_batch: how many chunks' margins are written in one batch while the document is read. By default a stream
            uses the engine's batch size, and other calls write all margins in one batch.
    """

    threshold: float | None
    top_k: int | None
    keep: Callable[[Margin], bool] | None
    stop_when: StopRule | None
    stop_after: int | None
    relevance: RelevanceLike
    rounds: int
    margin_style: MarginStyle | None
    task: Task
    prompts: Prompts | None
    variables: Mapping[str, str] | None
    margin_config: GenerationConfig | None
    answer_config: GenerationConfig | None
    margin_tokens: int | None
    answer_tokens: int | None
    answer_schema: Mapping[str, Any] | None
    citations: bool | None
    answer_volume: AnswerVolume
    margin_batch: int | None


def parse_options(options: Options) -> Settings:
    """Check options, and fill in the defaults that do not depend on the engine.

    Raises:
        TypeError: for an unknown option, or a value of the wrong type.
        ValueError: for a value out of range, or options that exclude each other.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"Unknown option: {', '.join(sorted(unknown))}. Options are {known}.")
    check_types(options)
    for name in ("top_k", "margin_batch", "stop_after", "margin_tokens", "answer_tokens", "rounds"):
        count = options.get(name)
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} is at least 1, not {count}.")
    style, task = options.get("margin_style"), options.get("task", "answer")
    if style is not None and style not in get_args(MarginStyle):
        raise ValueError(f"margin_style is one of {get_args(MarginStyle)}, not {style!r}.")
    if task not in PROMPTS:
        raise ValueError(f"task is one of {tuple(PROMPTS)}, not {task!r}.")
    volume = options.get("answer_volume", "most-relevant")
    if volume not in get_args(AnswerVolume):
        raise ValueError(f"answer_volume is one of {get_args(AnswerVolume)}, not {volume!r}.")
    if options.get("top_k") is not None and options.get("stop_after") is not None:
        raise ValueError(
            "top_k chooses after the whole document is read, and stop_after stops before: use one of them."
        )
    chosen = options.get("top_k") is not None or options.get("keep") is not None
    threshold = options.get("threshold")
    if threshold is None:
        threshold = 0.0 if chosen else None
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is between 0 and 1, not {threshold}.")
    prompts = options.get("prompts") or PROMPTS[task]
    if prompts.question.startswith("{question}"):
        raise ValueError(
            "The question's prompt must begin with text: the question's likelihood is measured behind it."
        )
    if style is None and prompts.margin != PROMPTS[task].margin:
        style = "free"  # verbatim margins use no margin prompt, and the caller gave one
    return Settings(
        threshold=threshold,
        top_k=options.get("top_k"),
        keep=options.get("keep"),
        stop_when=_stop_rule(options.get("stop_when"), options.get("stop_after")),
        relevance=resolve(options.get("relevance", "combined")),
        margin_style=style,
        prompts=prompts,
        margin_config=_bounded(options.get("margin_config"), options.get("margin_tokens"), NOTE_TOKENS),
        quote_tokens=_quote_tokens(options),
        rounds=options.get("rounds") or 1,
        answer_config=_bounded(options.get("answer_config"), options.get("answer_tokens"), ANSWER_TOKENS),
        margin_batch=options.get("margin_batch"),
        answer_volume=volume,
        variables=_variables(options.get("variables") or {}),
        answer_schema=_schema(options.get("answer_schema")),
        cites=bool(options.get("citations")) and options.get("answer_schema") is None,
    )


def unwatched_options(options: Options, chunks: int) -> Options:
    """Options of a stream that is only drained: all margins are written in one batch, which is fastest.

    Unchanged if ``margin_batch``, ``stop_when`` or ``stop_after`` is set.

    Args:
        options: the caller's options.
        chunks: how many chunks the document has.
    """
    is_set = any(options.get(name) is not None for name in ("margin_batch", "stop_when", "stop_after"))
    return options if is_set else {**options, "margin_batch": chunks}


def _stop_rule(stop_when: StopRule | None, stop_after: int | None) -> StopRule | None:
    if isinstance(stop_when, str) and stop_when != "enough":
        raise ValueError(f'stop_when is a callable on the margins so far, or "enough", not {stop_when!r}.')
    if stop_after is None:
        return stop_when
    if isinstance(stop_when, str):
        raise ValueError('stop_after and stop_when="enough" both say when to stop: use one of them.')

    def enough(margins: list[Margin]) -> bool:
        stopped = stop_when is not None and stop_when(margins)
        return stopped or sum(margin.kept for margin in margins) >= stop_after

    return enough


def _schema(given: Mapping[str, Any] | None) -> str | None:
    return None if given is None else grammar_schema(given)


def _quote_tokens(options: Options) -> int:
    config = options.get("margin_config")
    configured = None if config is None else config.max_new_tokens
    return options.get("margin_tokens") or configured or QUOTE_TOKENS


def _variables(given: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in given.items():
        if name in HOLES or not isinstance(value, str):
            raise ValueError(
                f"variables are strings under names of the caller's own, none of {HOLES}: not {name!r}."
            )
    return dict(given)


def _bounded(config: GenerationConfig | None, wanted: int | None, default: int) -> Generation:
    """A generation config with a limit on new tokens; greedy if none is given."""
    tokens = wanted or default
    if config is None:
        return Greedy(tokens)
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise ValueError("Branches decode one hypothesis each: num_beams and num_return_sequences must be 1.")
    if config.max_new_tokens is not None and wanted is None:
        return config
    bounded = copy.deepcopy(config)
    bounded.max_new_tokens = tokens
    return bounded
