"""Settings: options with every default filled in, and adapted to what an engine can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wim_kernel.common.margins import Margin
from wim_kernel.engines.base import AnyEngine
from wim_kernel.engines.generation import Generation
from wim_kernel.run.relevance.calibration import SIGNALS
from wim_kernel.run.relevance.scores import Evidence, QuestionLikelihood, resolve
from wim_kernel.text.prompts import Prompts

MarginStyle = Literal["free", "verbatim"]
AnswerVolume = Literal["last", "most-relevant"]
StopRule = Callable[[list[Margin]], bool] | Literal["enough"]
THRESHOLD = 0.5
EVIDENCE_THRESHOLD = 0.25  # where relevance is a probability of evidence; see docs/relevance.md
QUOTE_TOKENS = 128  # of a verbatim margin, whose sentences cost no decoding


@dataclass(frozen=True)
class Settings:
    """Checked options with defaults.

    The defaults of ``margin_style``, ``relevance`` and ``threshold`` depend on the engine, and are filled in by
    `adapt_to_engine`.

    Attributes:
        quote_tokens: most tokens of a verbatim margin.
        without_question: whether there is no question.
        rates: whether the engine is a chat model, which rates a chunk in the reply that holds its note.
        first_look: whether shared words decide which chunks are asked at all.
        most_asked: most chunks to ask for one question; None for no limit.
        sees_attention: whether the engine reports the model's attention.
        answer_schema: the JSON schema of the answer, as text.
        cites: whether the answer cites the kept margins by their numbers.

    The other attributes are those of `wim_kernel.Options`.
    """

    threshold: float | None
    top_k: int | None
    keep: Callable[[Margin], bool] | None
    stop_when: StopRule | None
    relevance: Callable[[Evidence], float]
    margin_style: MarginStyle | None
    prompts: Prompts
    margin_config: Generation
    answer_config: Generation
    margin_batch: int | None
    quote_tokens: int = QUOTE_TOKENS
    rounds: int = 1
    without_question: bool = False
    sees_attention: bool = False
    rates: bool = False
    first_look: bool = False
    most_asked: int | None = None
    answer_volume: AnswerVolume = "most-relevant"
    variables: Mapping[str, str] = field(default_factory=dict)
    answer_schema: str | None = None
    cites: bool = False

    @property
    def asks(self) -> str:
        """The request to a branch that the relevance score needs; see `Relevance.asks`."""
        return str(getattr(self.relevance, "asks", "nothing"))

    @property
    def keeps_all(self) -> bool:
        """Whether all margins are written and kept, whatever they are like."""
        return self.threshold == 0 and self.top_k is None

    @property
    def judges_notes(self) -> bool:
        """Whether a second call judges each written note, so that relevance is known only after the note."""
        return self.asks == "judgement"

    @property
    def note_rates(self) -> Literal["", "note", "quotes"]:
        """What the reply of a margin's branch holds beside a rating; empty if it holds the note alone."""
        if not self.rates or self.asks in ("decision", "judgement"):
            return ""
        if self.margin_style == "verbatim":
            return "quotes"
        return "" if getattr(self.relevance, "searches", ()) else "note"

    @property
    def looks_first(self) -> bool:
        """Whether a first look decides which chunks are asked."""
        return bool(self.note_rates) and self.measures_boundaries

    @property
    def notes_while_scoring(self) -> bool:
        """Whether a chunk's note is written when the chunk is scored."""
        return self.judges_notes or self.looks_first

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals of passages to measure; none without a question."""
        wanted = getattr(self.relevance, "searches", None)
        if self.without_question:
            return ()
        if wanted is None:  # a caller's own score gets every signal that costs no branch of its own
            wanted = SIGNALS if self.sees_attention else ("lexical",)
        if not wanted and self.margin_style == "verbatim" and self.sees_attention:
            wanted = SIGNALS
        return tuple(wanted)

    @property
    def measures_boundaries(self) -> bool:
        """Whether relevance is measured by a branch at each chunk's end."""
        return self.asks != "nothing" or not getattr(self.relevance, "searches", ())


def adapt_to_engine(settings: Settings, engine: AnyEngine, *, without_question: bool = False) -> Settings:
    """Fill in the defaults that depend on the engine, and check that the engine can do what the options ask for.

    Without attention the default relevance is ``"lexical+passage"``, without likelihoods ``"lexical+decision"``, and
    without a question ``"likelihood"`` or ``"decision"``.

    Args:
        settings: the caller's settings.
        engine: the engine that will run them.
        without_question: whether there is no question.

    Raises:
        ValueError: if the engine cannot measure what an option needs, or cannot keep its limit of requests.
    """
    sees, measures, rates = bool(engine.heads), engine.measures_likelihood, engine.rates
    relevance, style = settings.relevance, settings.margin_style
    if relevance == resolve("combined") and not sees:
        if rates:
            relevance = resolve("rating")
        elif without_question:
            relevance = resolve("likelihood") if measures else resolve("decision")
        else:
            relevance = resolve("lexical+passage") if measures else resolve("lexical+decision")
    if getattr(relevance, "asks", "") == "rating" and not rates:
        raise ValueError(
            "relevance='rating' is a chat model's own rating: use it with WimKernel.from_chat_model."
        )
    searches = getattr(relevance, "searches", ())
    if "attention" in searches and not sees:
        raise ValueError(
            "This engine cannot see the model's attention: use relevance='passage', 'likelihood' or a callable."
        )
    if (isinstance(relevance, QuestionLikelihood) or "passage" in searches) and not measures:
        if isinstance(relevance, QuestionLikelihood) and relevance == resolve("likelihood"):
            relevance = resolve("decision")
        elif relevance == resolve("lexical+passage"):
            relevance = resolve("lexical+decision")
        else:
            raise ValueError(
                "This relevance needs likelihoods of prompts, which this server does not give without reading the "
                "document again: use 'lexical', 'decision', 'second-call' or a callable."
            )
    if style == "verbatim" and rates and getattr(relevance, "asks", "") in ("decision", "judgement"):
        raise ValueError(
            "A chat model quotes in the reply that rates: use margin_style='free' with this relevance."
        )
    if style == "verbatim" and not measures and not rates:
        raise ValueError(
            "Verbatim margins are chosen by the question's likelihood, which this server does not give without reading "
            "the document again: use margin_style='free'."
        )
    if style is None:
        quotes = sees or (rates and getattr(relevance, "asks", "nothing") in ("rating", "nothing"))
        style = "verbatim" if quotes and not without_question else "free"
    threshold = settings.threshold
    if threshold is None:
        is_probability = (
            getattr(relevance, "searches", ()) and getattr(relevance, "asks", "nothing") == "nothing"
        )
        threshold = EVIDENCE_THRESHOLD if is_probability else THRESHOLD
    most_calls = engine.max_calls
    own_calls = 1 if settings.answer_schema is None else 2  # an answer that does not fit is put into shape
    adapted = replace(
        settings,
        rates=rates,
        first_look=engine.first_look and not (without_question or settings.keeps_all),
        most_asked=None if most_calls is None else most_calls - own_calls,
        relevance=relevance,
        margin_style=style,
        threshold=threshold,
        without_question=without_question,
        sees_attention=sees,
    )
    if most_calls is not None:
        if not adapted.looks_first:
            raise ValueError(
                "max_calls can limit the requests of relevance='rating' and of a callable: use one of these, or leave "
                "max_calls out."
            )
        if most_calls < own_calls:
            raise ValueError("max_calls is at least 2 with an answer schema, which may take two requests.")
    return adapted
