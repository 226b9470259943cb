"""One question on the page: its margins, what the person says of them, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wim_kernel import ChunkRead, Citation, Margin, Usage, WimResult
from wim_kernel.run.citing import citations_of, passages_of
from wim_kernel.text.markers import MARKER

Range = tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """What a person says of a margin.

    Attributes:
        kept: whether it goes into the answer's prompt; None leaves that to the model.
        text: the text that replaces the model's; None leaves it.
    """

    kept: bool | None = None
    text: str | None = None

    def apply(self, margin: Margin) -> Margin:
        """The margin as the person wants it."""
        if self.text is not None and self.text != margin.text:
            margin = margin.edited(self.text)
        return margin if self.kept is None else replace(margin, kept=self.kept)


@dataclass
class Turn:
    """A question and all that came of it.

    Attributes:
        question: the question.
        written: the margins as the model wrote them, by chunk.
        verdicts: what the person said of them, by chunk.
        chunks_read: how many chunks were read.
        tokens_read: how many of the document's tokens these have.
        is_complete: whether all margins were written that should be.
        answer: the answer's text so far.
        given: the margins that the answer was asked for with.
        sources: those that its prompt had room for, in the order of their numbers.
        result: the finished answer.
        usage: what the question cost: reading, margins, and every answer.
        seconds: how long it took.
    """

    question: str
    written: dict[int, Margin] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    chunks_read: int = 0
    tokens_read: int = 0
    is_complete: bool = False
    answer: str = ""
    given: tuple[Margin, ...] = ()
    sources: tuple[Margin, ...] = ()
    result: WimResult | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    _quoted: dict[int, tuple[Margin, list[Range]]] = field(default_factory=dict, repr=False)
    _cited: tuple[list[Range], Sequence[Citation]] = field(default=([], ()), repr=False)

    def margin(self, index: int) -> Margin:
        """A chunk's margin as the person wants it."""
        return self.verdicts.get(index, Verdict()).apply(self.written[index])

    @property
    def margins(self) -> list[Margin]:
        """All margins as the person wants them, in chunk order."""
        return [self.margin(index) for index in sorted(self.written)]

    @property
    def chunks_before_answer(self) -> int:
        """How many chunks the answer stands behind: all that were read, or, cut short, those up to the last margin."""
        if self.is_complete or not self.written:
            return max(1, self.chunks_read)
        return max(self.written) + 1

    def read(self, event: ChunkRead) -> None:
        """Record a chunk."""
        new, self.chunks_read, self.tokens_read = (
            event.tokens - self.tokens_read,
            event.index + 1,
            event.tokens,
        )
        self.usage += Usage(cached_tokens=new) if event.cached else Usage(prefill_tokens=new)

    @property
    def used(self) -> tuple[Margin, ...]:
        """The margins that go into an answer's prompt from now on."""
        return tuple(margin for margin in self.margins if margin.is_used)

    @property
    def is_outdated(self) -> bool:
        """Whether the person has changed the kept margins since the answer was written."""
        return self.result is not None and _words(self.used) != _words(self.given)

    def judge(self, index: int, *, kept: bool) -> None:
        """Keep or drop a margin."""
        self.verdicts[index] = replace(self.verdicts.get(index, Verdict()), kept=kept)

    def edit(self, index: int, text: str) -> None:
        """Replace a margin's text, and keep it; without text it is dropped."""
        self.verdicts[index] = Verdict(kept=bool(text.strip()), text=text.strip())

    def citations(self) -> Sequence[Citation]:
        """The citations of the answer so far; of one that is being written, those with numbers."""
        if self.result is not None:
            return self.result.citations
        markers = [each.span() for each in MARKER.finditer(self.answer)]
        if markers != self._cited[0]:  # finding what is cited takes longer than writing a token
            self._cited = markers, citations_of(self.answer, self.sources)
        return self._cited[1]

    def quoted(self, index: int) -> list[Range]:
        """The characters of a chunk's text that its margin quotes, in order; empty if it quotes none that are there."""
        margin = self.margin(index)
        if index not in self._quoted or self._quoted[index][0] != margin:
            found = passages_of(margin) if margin.text.strip() else []
            located = ((each.start, each.quote) for each in found if each.start is not None)
            self._quoted[index] = margin, [(start, start + len(quote)) for start, quote in located]
        return self._quoted[index][1]

    def begin_answer(self) -> None:
        """Forget the answer, for another one."""
        self.answer, self.result, self._cited = "", None, ([], ())
        self.given = self.sources = self.used

    def pay(self, usage: Usage) -> None:
        """Add what an answer cost. The document tokens that it found in the cache were counted as read before."""
        self.usage += replace(usage, cached_tokens=0)


def _words(margins: Sequence[Margin]) -> list[tuple[int, str]]:
    return [(margin.index, margin.text) for margin in margins]
