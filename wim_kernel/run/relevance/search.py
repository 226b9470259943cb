"""The search for evidence: signals of a document's passages for a question, measured on branches.

The search has two passes, and both run short prompts only. First, one branch behind the text read so far carries the
question. Its signal is the attention of the question's tokens on each passage, in the retrieval heads, less the
attention of a question about nothing. Then a shortlist of passages is read, each alone behind the head and with the
question behind it. Its signal is the question's likelihood, which does not depend on the passages' order. A document of
few passages gets the second pass only, over all its passages.

Query-focused heads: arXiv 2506.09944. Query likelihood: Ponte and Croft, SIGIR 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wim_kernel.engines.base import AttentionProbe, Branch, Decoded, Head
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.findings import Findings
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.run.relevance.scores import FIRST_LOOK
from wim_kernel.text.run_text import Prompt, Text

SHORTLIST = 8  # most passages that are read alone
TRUST_ENOUGH = 0.5
"""The trust in shared words (`Findings.trust`) from which a first look leaves `RIVALS` passages to be read alone.

On vLLM with the embedded model, documents of 4,000 tokens, 30 questions of SQuAD, 20 of HotpotQA and 30 of SQuAD in
other words than the text: with this rule and `UNDECIDED`, 0.8, 3.0 and 7.8 passages a question and areas under the
curve of relevance of 1.00, 0.85 and 0.75; with four passages in place of two, and always some, 3.1, 5.3 and 7.9
passages and areas of 1.00, 0.87 and 0.75. Half of the shortlist for the questions in other words would take their area
to 0.58."""
RIVALS = 2
UNDECIDED = 0.25
"""The bound by shared words (`Findings.bounds`) from which a chunk is a rival of the best one: where it is kept."""
NO_QUESTION = "N/A"  # the question about nothing, whose attention is subtracted

Decode = Callable[[Sequence[Branch]], Iterator[tuple[int, Decoded] | None]]
"""Decodes branches; yields the index and result of each finished branch, and None for every other step."""
Lead = Callable[[str], Prompt]
"""Makes the prompt with the question."""


class SearchedQuestion(Protocol):
    """A question whose evidence is searched for."""

    question: str
    findings: Findings | None

    def add_usage(self, decoded: Decoded) -> None:
        """Add a finished branch's tokens to the question's usage."""


@dataclass(frozen=True)
class EvidenceSearch:
    """Searches a document for evidence.

    Attributes:
        document: the document's passages.
        heads: the retrieval heads.
        calibration: the model's calibration, which combines the signals.
        lead: a callback that makes the prompt with the question.
        decode: a callback that decodes branches.
        head_tokens: how many tokens stand before the document.
        looks_first: whether only passages that pass a first look at shared words are read alone.
    """

    document: DocumentPassages
    heads: tuple[Head, ...]
    calibration: Calibration
    lead: Lead
    decode: Decode
    head_tokens: int
    looks_first: bool = False

    @property
    def reads_each_alone(self) -> bool:
        """Whether the document has so few passages that each is read alone, in place of the first pass."""
        return bool(self.heads) and self.calibration.is_found and len(self.document) <= SHORTLIST

    def attend(
        self, questions: Sequence[SearchedQuestion], begins: Sequence[int], chunks: range, at: int
    ) -> Iterator[None]:
        """First pass: measure the attention on the passages of ``chunks``, for several questions at once.

        Args:
            questions: the questions, whose findings are updated.
            begins: the position of each chunk's first token in the volume.
            chunks: the chunks of one volume that were read.
            at: the position of the boundary behind ``chunks``.
        """
        read = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        sizes = np.cumsum([len(self.document.passages[index].sentences) for index in read])[:-1]
        for item in self.attention(questions, begins, chunks, at):
            if item is None:
                yield None
                continue
            number, mass, suffix_ids = item
            findings = _findings(questions[number])
            findings.changed()
            for index, part in zip(read, np.split(mass.mean(0), sizes), strict=True):
                findings.mass[index] = part
                findings.seen[index] = chunks.stop, suffix_ids

    def attention(
        self, questions: Sequence[SearchedQuestion], begins: Sequence[int], chunks: range, at: int
    ) -> Iterator[tuple[int, np.ndarray, tuple[int, ...]] | None]:
        """Each question's attention less that of the question about nothing; see `attend` for the arguments.

        Yields:
            A question's index, its attention (heads, sentences of ``chunks``), and its branch's token ids; None for
            other steps.
        """
        cuts = [
            begins[chunk - chunks.start] + cut
            for chunk in chunks
            for index in self.document.of_chunk[chunk]
            for cut in self.document.passages[index].cuts
        ]
        if not cuts:
            return
        probe = AttentionProbe(tuple(cuts), self.heads)
        texts = [*(each.question for each in questions), NO_QUESTION]
        found: dict[int, tuple[np.ndarray, tuple[int, ...]]] = {}
        for item in self.decode([asking_branch(at, self.lead(text), probe) for text in texts]):
            if item is None:
                yield None
                continue
            number, decoded = item
            questions[min(number, len(questions) - 1)].add_usage(decoded)
            if decoded.scores.attention is not None:
                found[number] = decoded.scores.attention[:, ::2], decoded.suffix_ids
        if found:
            baseline, _ = found.pop(len(questions))
            yield from ((number, mass - baseline, ids) for number, (mass, ids) in found.items())

    def read_alone(self, questions: Sequence[SearchedQuestion], chunks: range) -> Iterator[None]:
        """Second pass: read the shortlist of the passages of ``chunks``, each passage alone, for several questions."""
        shortlists = [self._shortlist(_findings(question), chunks) for question in questions]
        pairs = [
            (question, index)
            for question, shortlist in zip(questions, shortlists, strict=True)
            for index in shortlist
            if index not in _findings(question).measured
        ]
        branches = [self._alone_branch(question.question, index) for question, index in pairs]
        for item in self.decode(branches) if branches else ():
            if item is None:
                yield None
                continue
            (question, index), decoded = pairs[item[0]], item[1]
            question.add_usage(decoded)
            scores, findings = decoded.scores, _findings(question)
            findings.changed()
            if scores.likelihood is not None:
                findings.measured[index] = scores.likelihood
            if scores.attention is not None:
                findings.mass[index], findings.alone = scores.attention.mean(0)[::2], True
                findings.seen[index] = 0, decoded.suffix_ids
        read = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        for question, shortlist in zip(questions, shortlists, strict=True):
            _findings(question).count_only(shortlist, read)

    def _alone_branch(self, question: str, index: int) -> Branch:
        """A branch that reads a passage as if it were the whole document, then the question."""
        passage = self.document.passages[index]
        probe = None
        if self.reads_each_alone:
            first = passage.cuts[0]
            cuts = tuple(self.head_tokens + cut - first for cut in passage.cuts)
            probe = AttentionProbe(cuts, self.heads)
        return asking_branch(self.head_tokens, (Text(passage.text), *self.lead(question)), probe)

    def _shortlist(self, found: Findings, chunks: range) -> list[int]:
        """The best passage of each chunk, best chunks first, then the next best passages; all if they are few.

        A first look leaves out passages that shared words make irrelevant whatever their other signals, and all of them
        if only one chunk has passages that shared words make likely: no other could be kept, whatever is measured.
        """
        candidates = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        most = SHORTLIST
        if self.looks_first:
            bounds = found.bounds(self.calibration)
            rivals = {
                self.document.passages[index].chunk for index in candidates if bounds[index] >= UNDECIDED
            }
            if len(rivals) <= 1:
                return []
            candidates = [index for index in candidates if bounds[index] >= FIRST_LOOK]
            most = RIVALS if found.trust >= TRUST_ENOUGH else SHORTLIST
        if len(candidates) <= most:
            return candidates
        scores = found.scores(self.calibration, ("attention", "lexical"))
        ranked = sorted(candidates, key=lambda index: -scores[index])
        first: dict[int, int] = {}
        for index in ranked:
            first.setdefault(self.document.passages[index].chunk, index)
        leaders = list(first.values())[:most]
        others = [index for index in ranked if index not in leaders]
        return [*leaders, *others][:most]


def _findings(question: SearchedQuestion) -> Findings:
    assert question.findings is not None, "findings are made before the search"
    return question.findings


def asking_branch(at: int, prompt: Prompt, probe: AttentionProbe | None) -> Branch:
    """A branch that measures the question's likelihood and, with a probe, its attention."""
    scored = next(index for index, run in enumerate(prompt) if run.hole == "question")
    return Branch(at, prompt, scored=scored, probe=probe)
