"""Finding evidence: which passages of a document a question is about, by what branches of the model tell.

Two passes over short prompts serve all passages of a document. One branch behind the text read so far carries the
question: what its tokens attend to, in the heads that look evidence up, less what they attend to when nothing is asked.
Then the few best passages are each read alone, from the head on, with the question behind them: how likely the question
is there does not depend on the order of passages. Where there are only a few passages, the second pass takes them all,
and the first is left out. (Query-focused heads: arXiv 2506.09944; query likelihood: Ponte and Croft, SIGIR 1998.)
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
from wim_kernel.text.run_text import Prompt, Text

SHORTLIST = 8  # passages that are read alone
NOBODY_ASKS = "N/A"  # a question about nothing, whose attention is that of no question in particular

Decode = Callable[[Sequence[Branch]], Iterator[tuple[int, Decoded] | None]]
"""Runs branches; yields each one's end with its number, and None for a step that brought nothing."""
Lead = Callable[[str], Prompt]
"""The question's lead-in, the question in its hole."""


class Asker(Protocol):
    """A question that evidence is looked for."""

    question: str
    findings: Findings | None

    def count(self, decoded: Decoded) -> None:
        """Add a branch's tokens to what the question cost."""


@dataclass(frozen=True)
class EvidenceSearch:
    """Looks for evidence in a document.

    Attributes:
        document: its passages.
        heads: whose attention counts.
        calibration: how signals are put together.
        lead: makes the question's prompt.
        decode: runs branches.
        size: how many tokens a document's head takes.
    """

    document: DocumentPassages
    heads: tuple[Head, ...]
    calibration: Calibration
    lead: Lead
    decode: Decode
    head_tokens: int

    @property
    def reads_each_alone(self) -> bool:
        """Whether the document has so few passages that each is read alone, and their order cannot matter."""
        return self.calibration.is_found and len(self.document) <= SHORTLIST

    def attend(
        self, askers: Sequence[Asker], begins: Sequence[int], chunks: range, at: int
    ) -> Iterator[None]:
        """Take the attention on passages of ``chunks``, for several questions at once.

        Args:
            askers: the questions.
            begins: at which position each chunk of ``chunks`` begins.
            chunks: chunks that were read, of one volume.
            at: where the text read so far ends.
        """
        read = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        sizes = np.cumsum([len(self.document.passages[index].sentences) for index in read])[:-1]
        for item in self.attention(askers, begins, chunks, at):
            if item is None:
                yield None
                continue
            number, mass, suffix_ids = item
            findings = _findings(askers[number])
            findings.changed()
            for index, part in zip(read, np.split(mass.mean(0), sizes), strict=True):
                findings.mass[index] = part
                findings.seen[index] = chunks.stop, suffix_ids

    def attention(
        self, askers: Sequence[Asker], begins: Sequence[int], chunks: range, at: int
    ) -> Iterator[tuple[int, np.ndarray, tuple[int, ...]] | None]:
        """What each question's tokens attend to, less what is attended to when nothing is asked; see `attend`.

        Yields:
            A question's number, its attention, (heads, sentences of ``chunks``), and its branch's tokens; None for
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
        questions = [*(asker.question for asker in askers), NOBODY_ASKS]
        found: dict[int, tuple[np.ndarray, tuple[int, ...]]] = {}
        for item in self.decode([asking_branch(at, self.lead(question), probe) for question in questions]):
            if item is None:
                yield None
                continue
            number, decoded = item
            askers[min(number, len(askers) - 1)].count(decoded)
            if decoded.scores.attention is not None:
                found[number] = decoded.scores.attention[:, ::2], decoded.suffix_ids
        if found:
            unasked, _ = found.pop(len(askers))
            yield from ((number, mass - unasked, ids) for number, (mass, ids) in found.items())

    def read_alone(self, askers: Sequence[Asker], chunks: range) -> Iterator[None]:
        """Read the most promising passages of ``chunks`` alone, for several questions at once."""
        shortlists = [self._shortlist(_findings(asker), chunks) for asker in askers]
        pairs = [
            (asker, index)
            for asker, shortlist in zip(askers, shortlists, strict=True)
            for index in shortlist
            if index not in _findings(asker).measured
        ]
        branches = [self._alone(asker.question, index) for asker, index in pairs]
        for item in self.decode(branches) if branches else ():
            if item is None:
                yield None
                continue
            (asker, index), decoded = pairs[item[0]], item[1]
            asker.count(decoded)
            scores, findings = decoded.scores, _findings(asker)
            findings.changed()
            if scores.likelihood is not None:
                findings.measured[index] = scores.likelihood
            if scores.attention is not None:
                findings.mass[index], findings.alone = scores.attention.mean(0)[::2], True
                findings.seen[index] = 0, decoded.suffix_ids
        read = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        for asker, shortlist in zip(askers, shortlists, strict=True):
            _findings(asker).count_only(shortlist, read)

    def _alone(self, question: str, index: int) -> Branch:
        """The passage as if it were the whole document, then the question."""
        passage = self.document.passages[index]
        probe = None
        if self.reads_each_alone:
            first = passage.cuts[0]
            cuts = tuple(self.head_tokens + cut - first for cut in passage.cuts)
            probe = AttentionProbe(cuts, self.heads)
        return asking_branch(self.head_tokens, (Text(passage.text), *self.lead(question)), probe)

    def _shortlist(self, found: Findings, chunks: range) -> list[int]:
        """The best passage of each of the best chunks, then the best of the others; all if there are few."""
        candidates = [index for chunk in chunks for index in self.document.of_chunk[chunk]]
        if len(candidates) <= SHORTLIST:
            return candidates
        scores = found.scores(self.calibration, ("attention", "lexical"))
        ranked = sorted(candidates, key=lambda index: -scores[index])
        first: dict[int, int] = {}
        for index in ranked:
            first.setdefault(self.document.passages[index].chunk, index)
        leaders = list(first.values())[:SHORTLIST]
        others = [index for index in ranked if index not in leaders]
        return [*leaders, *others][:SHORTLIST]


def _findings(asker: Asker) -> Findings:
    assert asker.findings is not None, "a question that is searched for has findings"
    return asker.findings


def asking_branch(at: int, prompt: Prompt, probe: AttentionProbe | None) -> Branch:
    """A branch whose question's likelihood and attention are wanted."""
    asked = next(index for index, run in enumerate(prompt) if run.hole == "question")
    return Branch(at, prompt, scored=asked, probe=probe)
