"""The state of a question, and of its margins, during a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from wim_kernel.common.chunk import Span
from wim_kernel.common.margins import BranchRecord, Margin, Usage
from wim_kernel.engines.base import Decoded
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.first_look import FirstLook
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.text.markers import MarkerFilter


@dataclass
class QuestionState:
    """The state of one question during a run.

    Attributes:
        question: the question; empty for a summary.
        position: the question's number among the call's questions, from 0.
        findings: the signals of the document's passages, if passages are searched.
        scored_at: for each chunk, how often the findings had changed when the chunk was scored last.
        likelihoods: mean log-probability of the question at each boundary measured so far, by the index of the chunk
            that ends there; -1 is the boundary before the first chunk.
        margins: the margins written in this run so far, by chunk.
        answer_margins: the margins that the answer is written from.
        answer_boundary: how many chunks stand before the answer's branch.
        answer: the finished answer branch; None before.
        markers: the filter of the answer's markers; None if it does not cite.
        prompt_tokens: tokens of branches' prompts so far.
        output_tokens: tokens generated so far.
        recomputed: document tokens that a server ran for branches beyond those in ``prefilled``; see `Decoded`.
        prefilled: prefix tokens that branches were the first to need, where the engine leaves prefilling to them.
        first_look: which chunks to ask a chat model about; None before it.
        billed: what the question's requests to a chat model cost.
    """

    question: str
    position: int = 0
    findings: Findings | None = None
    scored_at: dict[int, int] = field(default_factory=dict)
    likelihoods: dict[int, float | None] = field(default_factory=dict)
    margins: dict[int, Margin] = field(default_factory=dict)
    answer_margins: list[Margin] = field(default_factory=list)
    answer_boundary: int = 0
    answer: Decoded | None = None
    markers: MarkerFilter | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    recomputed: int = 0
    prefilled: int = 0
    first_look: FirstLook | None = None
    billed: Usage = field(default_factory=lambda: Usage(cache_write_tokens=0))

    @property
    def is_settled(self) -> bool:
        """Whether every margin was written by the findings as they are now."""
        changes = None if self.findings is None else self.findings.changes
        return all(self.scored_at.get(index) == changes for index in self.margins)

    @property
    def in_order(self) -> list[Margin]:
        """The margins so far, in chunk order."""
        return [self.margins[index] for index in sorted(self.margins)]

    def add_usage(self, decoded: Decoded) -> None:
        """Add a finished branch's tokens to the question's usage."""
        prompt, output = decoded.prompt_tokens, decoded.output_tokens
        self.prompt_tokens += len(decoded.suffix_ids) if prompt is None else prompt
        self.output_tokens += len(decoded.token_ids) if output is None else output
        self.recomputed += decoded.recomputed
        self.prefilled += decoded.prefilled
        if decoded.billed is not None:
            self.billed += decoded.billed


@dataclass(eq=False)
class PendingMargin:
    """A margin in progress: one question at one chunk's end.

    Attributes:
        state: the question's state.
        index: the chunk; -1 for the boundary before the first chunk, which is measured and gets no margin.
        evidence: the chunk's signals; None before it is scored.
        relevance: the score; None before it is known.
        text: the note.
        spans: for verbatim notes, where each sentence stands in its source.
        located: for quotations by a chat model, the share of them that was found in the chunk.
        token_ids: a free note's tokens.
        branch: the tokens that the model saw.
        chosen: whether ``top_k`` chose the margin, which is then written whatever its relevance.
        dropped: whether ``top_k`` left the margin out, which then stays empty whatever its relevance.
    """

    state: QuestionState
    index: int
    evidence: Evidence | None = None
    relevance: float | None = None
    text: str = ""
    spans: tuple[Span, ...] = ()
    located: float | None = None
    token_ids: tuple[int, ...] = ()
    branch: BranchRecord | None = None
    chosen: bool = False
    dropped: bool = False
