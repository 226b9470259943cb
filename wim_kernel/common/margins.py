"""Results: margins, answers, and their cost. Plain values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wim_kernel.common import plain_data
from wim_kernel.common.chunk import Chunk, Span, spans_in
from wim_kernel.common.citations import Citation
from wim_kernel.common.errors import ChunkError, MarginsError

TEXT_SIGNALS = ("support", "located")
"""The signals of `Margin.evidence` that are about the margin's text, and not about its chunk."""


@dataclass(frozen=True)
class BranchRecord:
    """The tokens that a branch saw: the reading's first ``prefix_tokens``, then ``suffix_ids``.

    Attributes:
        prefix_tokens: how many tokens of the volume the branch saw, head included.
        suffix_ids: the token ids behind them.
        digest: a digest of the volume's tokens seen, which identifies the reading.
        first_chunk: the first chunk of the volume.
    """

    prefix_tokens: int
    suffix_ids: tuple[int, ...]
    digest: int
    first_chunk: int = 0


@dataclass(frozen=True)
class Margin:
    """A note written at the end of a chunk, for one question.

    Attributes:
        index: the chunk's index in the reading.
        text: the note; empty if the chunk's relevance is below the threshold.
        relevance: how much the chunk helps with the question, 0 to 1.
        kept: whether the note goes into the answer's prompt. People and programs may change it.
        chunk: the chunk that the note is about, with its sources.
        spans: for verbatim margins, the place of each copied sentence in its source; otherwise empty.
        evidence: the measured signals of the relevance, by name (see `wim_kernel.run.relevance.scores.Evidence`); for
            free notes also ``"support"``, the share of the note's content words that occur in the chunk, 0 to 1: an
            invented note is near 0; for free notes and a chat model's quotations ``"located"``, the share of the note's
            sentences or quotations that were found in the chunk, where that can be told.
        note: a reader's remark for the answer, such as "this is the one" (see ``Reading.answer``).
        token_ids: the note's tokens, without end-of-sequence.
        branch: the tokens that the model saw, for ``Reading.prompt_ids``; None for margins made by hand.
    """

    index: int
    text: str
    relevance: float
    kept: bool
    chunk: Chunk
    spans: tuple[Span, ...] = ()
    note: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict, compare=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    branch: BranchRecord | None = field(default=None, repr=False, compare=False)

    @property
    def is_used(self) -> bool:
        """Whether the margin goes into the answer's prompt: it is kept, and has a text or a reader's remark."""
        return self.kept and bool(self.text.strip() or self.note.strip())

    @property
    def found_nowhere(self) -> bool:
        """Whether nothing of the note was found in its chunk: not word for word, not nearly, not in other words."""
        return self.evidence.get("located") == 0

    @property
    def is_shown(self) -> bool:
        """Whether people see the note: it is used, or it was left out because it was found nowhere."""
        return self.is_used or (bool(self.text.strip()) and self.found_nowhere)

    def edited(self, text: str) -> Margin:
        """A copy with another text, kept, as after a person's edit. What was found of the old text is left out."""
        return replace(
            self, text=text, kept=True, spans=(), token_ids=(), evidence=without_text(self.evidence)
        )

    def to_dict(self) -> dict[str, Any]:
        """The margin as plain JSON data, without the branch's tokens."""
        return {
            "index": self.index,
            "text": self.text,
            "relevance": self.relevance,
            "kept": self.kept,
            "note": self.note,
            "chunk": self.chunk.to_dict(),
            "spans": [asdict(span) for span in self.spans],
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Margin:
        """Read back what `to_dict` wrote.

        Raises:
            MarginsError: if keys are missing.
        """
        says = "Margin.from_dict reads what Margin.to_dict wrote"
        if not isinstance(data, Mapping):
            raise MarginsError(f"{says}, and this is {plain_data.shown(data)}.")
        missing = [name for name in ("index", "text", "relevance", "kept", "chunk") if name not in data]
        if missing:
            raise MarginsError(f"{says}, and this has no {', '.join(missing)}.")
        try:
            return cls(
                index=plain_data.count("index", data["index"]),
                text=plain_data.string("text", data["text"]),
                relevance=plain_data.share("relevance", data["relevance"]),
                kept=plain_data.truth("kept", data["kept"]),
                chunk=Chunk.from_dict(plain_data.mapping("chunk", data["chunk"])),
                spans=spans_in(data.get("spans", ())),
                note=plain_data.string("note", data.get("note", "")),
                evidence=evidence_in(data.get("evidence", {})),
            )
        except plain_data.WrongTypeError as error:
            raise MarginsError(f"{says}: {error}.") from error
        except ChunkError as error:
            raise MarginsError(f"The margin's chunk is no chunk's data. {error}") from error


def without_text(evidence: Mapping[str, float]) -> dict[str, float]:
    """The signals of a margin whose text was changed: those about its chunk. The text is the person's own."""
    return {name: each for name, each in evidence.items() if name not in TEXT_SIGNALS}


def evidence_in(data: object) -> dict[str, float]:
    """What a relevance is made of, as `Margin.to_dict` wrote it.

    Raises:
        WrongTypeError: if it is something else.
    """
    found = plain_data.mapping("evidence", data)
    return {str(name): plain_data.number(f"evidence {name!r}", item) for name, item in found.items()}


@dataclass(frozen=True)
class Usage:
    """Tokens that a call cost.

    Attributes:
        prefill_tokens: document tokens run through the model in this call.
        cached_tokens: document tokens found in the cache; None if a server does not report them. With a chat model,
            the tokens that its requests read from the provider's cache, all requests added up.
        prompt_tokens: tokens of prompts: the branches' prompts, and the reading's head if this call ran it.
        output_tokens: tokens generated on branches.
        cache_write_tokens: of the tokens run, those that a chat model's provider wrote to its cache, for which some ask
            more; None if the provider does not report them, and with models of one's own.
        calls: requests to a chat model, without those that it refused.
    """

    prefill_tokens: int = 0
    cached_tokens: int | None = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int | None = None
    calls: int = 0

    @property
    def input_tokens(self) -> int:
        """All input tokens: those run, and those found in the cache."""
        return self.prefill_tokens + (self.cached_tokens or 0) + self.prompt_tokens

    def base_tokens(self, *, write: float = 1.25, read: float = 0.1) -> float:
        """The input in tokens of plain input: what it costs, divided by the price of an input token.

        Args:
            write: the price of a token written to the provider's cache, in tokens of plain input.
            read: the price of a token read from it.
        """
        written = self.cache_write_tokens or 0
        plain = self.prefill_tokens + self.prompt_tokens - written
        return plain + write * written + read * (self.cached_tokens or 0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prefill_tokens + other.prefill_tokens,
            _sum(self.cached_tokens, other.cached_tokens),
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            _sum(self.cache_write_tokens, other.cache_write_tokens),
            self.calls + other.calls,
        )


@dataclass(frozen=True)
class Timings:
    """Seconds that a call took; ``prefill``, ``margins``, ``answer`` and ``other`` add up to ``total``.

    Attributes:
        prefill: seconds of reading chunks.
        margins: seconds of scoring chunks and writing margins.
        answer: seconds of writing the answer.
        other: all other seconds: waiting for other callers, callbacks, and a stream's consumer.
        total: seconds from the call to its end.
        first_margin: seconds from the call to the first margin; None without margins.
        first_token: seconds from the call to the answer's first token; None without an answer.
    """

    prefill: float = 0.0
    margins: float = 0.0
    answer: float = 0.0
    other: float = 0.0
    total: float = 0.0
    first_margin: float | None = None
    first_token: float | None = None


@dataclass(frozen=True)
class WimResult:
    """An answer, its margins and its cost.

    Attributes:
        answer: the answer's text.
        margins: every margin, in chunk order, kept or not.
        usage: tokens that the call cost.
        timings: seconds that the call took.
        stopped_early: whether reading stopped before the end of the document.
        volumes: how many volumes the document has; 1 if it fits the model's window.
        question: the question.
        relevance_by: the name of the relevance score: ``"likelihood"``, ``"decision, by the first token"``, ...
        citations: with ``citations=True``, where the answer comes from, in the answer's order.
        dropped_markers: how many markers with numbers that no margin has were left out of the answer; 0 in process,
            where they cannot be written.
        token_ids: the answer's tokens, without end-of-sequence.
        branch: the tokens that the model saw, for ``Reading.prompt_ids``.
    """

    answer: str
    margins: tuple[Margin, ...]
    usage: Usage
    timings: Timings
    stopped_early: bool = False
    volumes: int = 1
    question: str = ""
    relevance_by: str = ""
    citations: tuple[Citation, ...] = ()
    dropped_markers: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    branch: BranchRecord | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> tuple[Margin, ...]:
        """The margins that went into the answer's prompt."""
        return tuple(margin for margin in self.margins if margin.kept)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {
            "question": self.question,
            "answer": self.answer,
            "margins": [margin.to_dict() for margin in self.margins],
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
            "stopped_early": self.stopped_early,
            "volumes": self.volumes,
            "relevance_by": self.relevance_by,
            "citations": [citation.to_dict() for citation in self.citations],
            "dropped_markers": self.dropped_markers,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WimResult:
        """Read back what `to_dict` wrote; `to_html` shows it as before.

        Raises:
            MarginsError: if it is something else.
        """
        from wim_kernel.common import saved  # which imports this module

        return saved.result_from_dict(data)

    def to_html(self) -> str:
        """The result as a page of its own: the answer with numbers to click, and the document with its margins.

        The document is the text of the margins' chunks: all that was read, or, for an answer from given margins, their
        chunks. All text is escaped, and nothing is loaded from elsewhere.
        """
        from wim_kernel.common import result_page  # which imports this module

        return result_page.page(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from wim_kernel.common import result_page

        return result_page.fragment(self)


def _sum(one: int | None, other: int | None) -> int | None:
    """The sum of two counts; None if neither is known, or if a call did not report its own."""
    return None if one is None or other is None else one + other
