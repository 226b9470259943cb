"""What a caller may set for one question, and what follows from leaving it open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, get_args

from transformers import GenerationConfig

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.option_checks import check_types
from wim_kernel.run.relevance.calibration import SIGNALS
from wim_kernel.run.relevance.scores import Evidence, QuestionLikelihood, RelevanceLike, resolve
from wim_kernel.text.prompts import HOLES, PROMPTS, Prompts, Task
from wim_kernel.text.schemas import grammar_schema

MarginStyle = Literal["free", "verbatim"]
AnswerVolume = Literal["last", "most-relevant"]
THRESHOLD = 0.5
EVIDENCE_THRESHOLD = 0.25  # of a probability that there is evidence; see docs/evaluation.md
StopRule = Callable[[list[Margin]], bool] | Literal["enough"]
NOTE_TOKENS = 64
QUOTE_TOKENS = 128  # sentences cost no decoding
ANSWER_TOKENS = 256


class Options(TypedDict, total=False):
    """Keyword arguments of every call that asks something.

    Attributes:
        threshold: margins are written and kept for chunks at or over this relevance; 0 writes and keeps all. By
            default 0.25 where relevance is a probability of evidence (a note too many costs less than one too few),
            0.5 with other scores, and 0 where ``top_k`` or ``keep`` choose.
        top_k: keep margins of this many most relevant chunks at most; they are written once all chunks are scored.
        keep: called with each written margin; False drops it.
        stop_when: called with the margins so far, in chunk order; True leaves the rest of the document unread.
            ``"enough"`` asks the model whether the notes kept so far answer the question.
        stop_after: leaves the rest unread once this many margins are kept.
        relevance: what relevance is taken from. ``"combined"``, the default: attention, words and likelihood, as a
            calibrated probability that the chunk holds evidence; ``"attention"``, ``"lexical"`` or ``"passage"``: one
            of them; ``"likelihood"``: how much likelier the question became by reading the chunk; ``"decision"`` and
            ``"second-call"``: the paper's; or a callable on `Evidence`. Engines that cannot see attention take
            ``"likelihood"`` by default, or ``"decision"``.
        rounds: how often evidence is looked for. From the second round on, what was found goes into the question's
            prompt, so that evidence a step away from the question's words is found too; nothing is read again.
        margin_style: ``"verbatim"``, whole sentences of the chunk, the default where the engine can choose them; or
            ``"free"``, the model's own words, the default where ``prompts`` ask for margins in another way.
        task: ``"answer"`` a question or ``"summarise"``; a summary's question may be empty.
        prompts: all the prompts; by default the task's.
        variables: data for further ``{name}`` holes that the caller's own prompts have.
        margin_config: how free margins are generated; greedy, 64 tokens by default. For verbatim margins,
            ``max_new_tokens`` bounds the sentences chosen: 128 by default.
        answer_config: how the answer is generated; greedy, 256 tokens by default.
        margin_tokens: most tokens of a margin, whatever ``margin_config`` says.
        answer_tokens: most tokens of the answer, whatever ``answer_config`` says.
        answer_schema: a JSON schema that the answer has to fit: it is complete JSON of that schema, whatever the model.
        answer_volume: which volume of a document longer than the window the answer stands behind, with the kept margins
            of all of them: the one with the ``"most-relevant"`` kept margin (the default; the last one if they do not
            all fit there), or the ``"last"`` one read.
        margin_batch: how many chunks' margins are written together while a document is being read. By default what
            suits the device in a stream, and all at once where nobody waits for margins.
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
    answer_volume: AnswerVolume
    margin_batch: int | None


@dataclass(frozen=True)
class Settings:
    """`Options` with everything that was left open filled in, but for ``margin_batch``.

    Style, relevance and threshold that were left open are filled in by `fitting`, which knows the engine.
    """

    threshold: float | None
    top_k: int | None
    keep: Callable[[Margin], bool] | None
    stop_when: StopRule | None
    relevance: Callable[[Evidence], float]
    margin_style: MarginStyle | None
    prompts: Prompts
    margin_config: GenerationConfig
    answer_config: GenerationConfig
    margin_batch: int | None
    quote_tokens: int = QUOTE_TOKENS
    rounds: int = 1
    blank: bool = False
    sees_attention: bool = False
    answer_volume: AnswerVolume = "most-relevant"
    variables: Mapping[str, str] = field(default_factory=dict)
    answer_schema: str | None = None

    @property
    def asks(self) -> str:
        """What the relevance score has branches find out; see `Relevance.asks`."""
        return str(getattr(self.relevance, "asks", "nothing"))

    @property
    def judges_notes(self) -> bool:
        """Whether a chunk's relevance is known only once its note is written, by a second call."""
        return self.asks == "judgement"

    @property
    def signals(self) -> tuple[str, ...]:
        """Signals of passages that have to be found; none where there is no question."""
        wanted = getattr(self.relevance, "searches", None)
        if self.blank:
            return ()
        if wanted is None:  # a caller's own score may look at all that costs nothing
            wanted = SIGNALS if self.sees_attention else ("lexical",)
        if not wanted and self.margin_style == "verbatim" and self.sees_attention:
            wanted = SIGNALS
        return tuple(wanted)

    @property
    def measures_boundaries(self) -> bool:
        """Whether relevance needs a branch behind each chunk."""
        return not getattr(self.relevance, "searches", ())


def fitting(settings: Settings, engine: AnyEngine, *, blank: bool = False) -> Settings:
    """The settings as an engine can follow them.

    Where attention cannot be seen, the default relevance is a rise in likelihood, and without likelihoods a decision.

    Args:
        settings: the caller's.
        engine: follows them.
        blank: whether there is no question, and so nothing to look for.

    Raises:
        ValueError: if the caller asked for what the engine cannot find out.
    """
    sees, measures = bool(engine.heads), engine.measures_likelihood
    relevance, style = settings.relevance, settings.margin_style
    if relevance == resolve("combined") and not sees:
        relevance = resolve("likelihood" if measures else "decision")
    searches = getattr(relevance, "searches", ())
    if "attention" in searches and not sees:
        raise ValueError(
            "This engine cannot see the model's attention: use relevance='passage', 'likelihood' or a callable."
        )
    if (isinstance(relevance, QuestionLikelihood) or "passage" in searches) and not measures:
        if isinstance(relevance, QuestionLikelihood) and relevance == resolve("likelihood"):
            relevance = resolve("decision")
        else:
            raise ValueError(
                "This relevance needs likelihoods of prompts, which this server does not give without reading the "
                "document again: use 'lexical', 'decision', 'second-call' or a callable."
            )
    if style == "verbatim" and not measures:
        raise ValueError(
            "Verbatim margins are chosen by the question's likelihood, which this server does not give without reading "
            "the document again: use margin_style='free'."
        )
    if style is None:
        style = "verbatim" if sees and not blank else "free"
    threshold = settings.threshold
    if threshold is None:
        threshold = EVIDENCE_THRESHOLD if getattr(relevance, "searches", ()) else THRESHOLD
    return replace(
        settings,
        relevance=relevance,
        margin_style=style,
        threshold=threshold,
        blank=blank,
        sees_attention=sees,
    )


def settle(options: Options) -> Settings:
    """Check options and fill in what they leave open.

    Raises:
        TypeError: for an option that does not exist.
        ValueError: for a value that makes no sense.
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
            "top_k chooses once all is read, and stop_after counts what is kept before: use one of them."
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
            "The question's prompt must begin with text: the question's likelihood is taken behind it."
        )
    if style is None and prompts.margin != PROMPTS[task].margin:
        style = "free"  # sentences are copied unasked, and the caller has something to ask
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
    )


def together(options: Options, chunks: int) -> Options:
    """Options by which a stream that nobody watches writes the margins of all ``chunks`` together, which is quickest.

    Unless the caller says how many, or may stop early and so waits for margins.
    """
    asked = any(options.get(name) is not None for name in ("margin_batch", "stop_when", "stop_after"))
    return options if asked else {**options, "margin_batch": chunks}


def _stop_rule(stop_when: StopRule | None, stop_after: int | None) -> StopRule | None:
    if isinstance(stop_when, str) and stop_when != "enough":
        raise ValueError(f'stop_when is a callable on the margins so far, or "enough", not {stop_when!r}.')
    if stop_after is None:
        return stop_when
    if isinstance(stop_when, str):
        raise ValueError('stop_after and stop_when="enough" both say when to stop: use one of them.')

    def enough(margins: list[Margin]) -> bool:
        asked = stop_when is not None and stop_when(margins)
        return asked or sum(margin.kept for margin in margins) >= stop_after

    return enough


def _schema(given: Mapping[str, Any] | None) -> str | None:
    return None if given is None else grammar_schema(given)


def _quote_tokens(options: Options) -> int:
    config = options.get("margin_config")
    stated = None if config is None else config.max_new_tokens
    return options.get("margin_tokens") or stated or QUOTE_TOKENS


def _variables(given: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in given.items():
        if name in HOLES or not isinstance(value, str):
            raise ValueError(
                f"variables are strings under names of the caller's own, none of {HOLES}: not {name!r}."
            )
    return dict(given)


def _bounded(config: GenerationConfig | None, wanted: int | None, default: int) -> GenerationConfig:
    """Greedy if nothing was asked; a limit on new tokens in any case."""
    tokens = wanted or default
    if config is None:
        return GenerationConfig.from_dict({"do_sample": False, "max_new_tokens": tokens})
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise ValueError("Branches decode one hypothesis each: num_beams and num_return_sequences must be 1.")
    if config.max_new_tokens is not None and wanted is None:
        return config
    bounded = GenerationConfig.from_dict(config.to_dict())
    bounded.max_new_tokens = tokens
    return bounded
