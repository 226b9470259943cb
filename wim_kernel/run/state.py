"""What is known of a question, and of its margins, while a document is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from wim_kernel.common.chunk import Span
from wim_kernel.common.margins import BranchRecord, Margin
from wim_kernel.engines.base import Decoded
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.scores import Evidence


@dataclass
class QuestionState:
    """One question on its way through a reading.

    Attributes:
        question: what is asked; empty for a summary.
        position: which of the call's questions it is, from 0.
        findings: what is known of the document's passages, if they are searched.
        likelihoods: log-probability of the question at each boundary measured so far; -1 is before the first chunk.
        margins: the margins written in this call so far, by chunk.
        given: the margins that the answer stands on.
        stands_on: how many chunks were read where the answer is written.
        answer: the answer's branch, once it is at its end.
        prompt_tokens: tokens of branches' prompts so far.
        output_tokens: tokens generated so far.
        recomputed: document tokens that a server ran again for branches.
    """

    question: str
    position: int = 0
    findings: Findings | None = None
    likelihoods: dict[int, float | None] = field(default_factory=dict)
    margins: dict[int, Margin] = field(default_factory=dict)
    given: list[Margin] = field(default_factory=list)
    stands_on: int = 0
    answer: Decoded | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    recomputed: int = 0

    @property
    def in_order(self) -> list[Margin]:
        """The margins so far, in chunk order."""
        return [self.margins[index] for index in sorted(self.margins)]

    def count(self, decoded: Decoded) -> None:
        """Add a branch's tokens."""
        prompt, output = decoded.prompt_tokens, decoded.output_tokens
        self.prompt_tokens += len(decoded.suffix_ids) if prompt is None else prompt
        self.output_tokens += len(decoded.token_ids) if output is None else output
        self.recomputed += decoded.recomputed


@dataclass
class PendingMargin:
    """Where a margin belongs, and what is found out about it on the way.

    Attributes:
        state: the question.
        index: the chunk; -1 for the boundary before the first, which is only measured.
        evidence: what branches found out.
        relevance: the score; None while it is not known.
        text: the note.
        spans: where verbatim sentences stand.
        token_ids: a free note's tokens.
        branch: what the model saw.
        chosen: among the best; its margin is written, whatever its relevance.
        dropped: not among the best; its margin stays empty, whatever its relevance.
    """

    state: QuestionState
    index: int
    evidence: Evidence | None = None
    relevance: float | None = None
    text: str = ""
    spans: tuple[Span, ...] = ()
    token_ids: tuple[int, ...] = ()
    branch: BranchRecord | None = None
    chosen: bool = False
    dropped: bool = False
