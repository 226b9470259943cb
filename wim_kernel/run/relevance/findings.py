"""What is known of a document's passages for one question, put on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wim_kernel.common.chunk import Chunk
from wim_kernel.run.relevance.calibration import SIGNALS, Calibration
from wim_kernel.run.relevance.lexical import LexicalIndex
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.run.relevance.scores import Evidence

Floats = np.ndarray
LEAST_MASS = 1e-5  # attention under this is no attention
LEANING = 3.0
"""How much flatter the curve is for a handful of passages: there a sentence too many costs little, and one too few is
the answer. On 32 sets of three passages about one subject, most of them made to mislead, the right one is then kept in
0.97 (Qwen2.5-Coder-1.5B) and 0.91 (the embedded model), and two of three on average."""
FULL_COVERAGE = 0.5  # a passage that shares so much of a question's words is taken to be about it
FLOOR = {"attention": -7.0, "lexical": -1.0, "passage": -5.0}
"""The least that a signal is taken to say, relative to the best passage."""


@dataclass
class Findings:
    """Signals of all passages of a document for one question; those not known yet are not numbers.

    Attributes:
        document: the passages.
        coverage: how much of the question's words each passage has, 0 to 1.
        question: the question.
        mass: attention on each sentence of each passage, less what the same heads put there unasked.
        likelihood: mean log-probability of the question given the passage alone, in nats, for those that count.
        measured: the same of every passage that was ever read alone.
        alone: whether attention was taken from each passage alone, and not from the whole document.
        seen: for each passage, how many chunks stood before the branch that told most of it, and the branch's tokens.
        again: the same from a later round, which knows what this one found.
    """

    document: DocumentPassages
    coverage: Floats
    question: str
    mass: list[Floats | None] = field(default_factory=list)
    likelihood: Floats = field(default_factory=lambda: np.zeros(0))
    alone: bool = False
    seen: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    again: Findings | None = None
    measured: dict[int, float] = field(default_factory=dict)
    _relative: dict[str, Floats] | None = None
    _known: dict[str, Floats] | None = None

    @classmethod
    def of(cls, document: DocumentPassages, question: str) -> Findings:
        """What is known before the model has read anything: the words."""
        count = len(document)
        return cls(
            document,
            document.index.coverage(question),
            question,
            [None] * count,
            np.full(count, np.nan),
        )

    def only(self, passages: Sequence[int]) -> Findings:
        """The same, as if the document had no other passages."""
        chosen = list(passages)
        coverage, likelihood = self.coverage[chosen], self.likelihood[chosen]
        mass = [self.mass[index] for index in chosen]
        return Findings(self.document, coverage, self.question, mass, likelihood, self.alone)

    def relative(self) -> dict[str, Floats]:
        """Each signal of each passage, less that of the best passage: 0 for the best, and less for all others.

        Attention in nats of its logarithm, words as a share of the question's, likelihoods in nats a token. Words
        count less where even the best passage shares few of them: it may be about another matter in like words. A
        passage whose likelihood was not measured is a little worse than the worst that was.
        """
        if self._relative is not None:
            return self._relative
        mass = np.array([np.nan if part is None else part.sum() for part in self.mass])
        known = ~np.isnan(mass)
        attention = np.log(np.maximum(np.where(known, mass, 0.0), LEAST_MASS))
        likelihood, measured = self.likelihood, ~np.isnan(self.likelihood)
        if measured.any():
            likelihood = np.where(measured, likelihood, likelihood[measured].min() - 0.3)
        found = {
            "attention": attention if known.any() else np.zeros(len(mass)),
            "lexical": self.coverage,
            "passage": likelihood if measured.any() else np.zeros(len(mass)),
        }
        relative = {name: _below_best(values, FLOOR[name]) for name, values in found.items()}
        trust = min(1.0, float(self.coverage.max(initial=0.0)) / FULL_COVERAGE)
        self._relative = {**relative, "lexical": relative["lexical"] * trust}
        return self._relative

    def scores(self, calibration: Calibration, signals: tuple[str, ...] = SIGNALS) -> Floats:
        """Evidence for each passage, (passages,): signals in units of their spread over the calibration's passages.

        Where each passage was read alone, all are on one subject as a rule, and shared words say little: those count
        only where nothing else is asked for, and likelihoods, which reward a passage that repeats the question, half.
        """
        relative, spread = self.relative(), dict(calibration.spread)
        weights = dict.fromkeys(signals, 1.0)
        if self.alone:
            spread["attention"] = spread["alone"]
            if len(signals) > 1:
                weights |= {"lexical": 0.0, "passage": 0.5}
        return np.asarray(sum(weights[name] * relative[name] / spread[name] for name in signals))

    def probabilities(self, calibration: Calibration) -> dict[str, Floats]:
        """The probability that each passage holds evidence, (passages,), by each signal and by all (``"combined"``)."""
        if self._known is not None:
            return self._known
        found = {name: calibration.probability(name, self.scores(calibration, (name,))) for name in SIGNALS}
        if self.alone:
            combined = calibration.probability("alone", self.scores(calibration) / LEANING)
        else:
            combined = calibration.probability("combined", self.scores(calibration))
        if self.again is not None:
            combined = np.maximum(combined, self.again.probabilities(calibration)["combined"])
        self._known = {**found, "combined": combined}
        return self._known

    def changed(self) -> None:
        """More is known than before."""
        self._relative = self._known = None

    def count_only(self, shortlist: Sequence[int], among: Sequence[int]) -> None:
        """Of some passages, count the likelihoods of the shortlist alone.

        While a document is being read, passages are read alone that later ones push off the shortlist; what is known
        in the end must not depend on that.
        """
        self.likelihood[list(among)] = np.nan
        for index in shortlist:
            self.likelihood[index] = self.measured.get(index, np.nan)
        self.changed()

    def best_of(self, chunk: int, calibration: Calibration) -> int | None:
        """The passage of a chunk that most probably holds evidence; None if the chunk has no text."""
        probability = self.probabilities(calibration)["combined"]
        return max(self.document.of_chunk[chunk], key=lambda passage: probability[passage], default=None)

    def evidence(self, question: str, chunk: Chunk, index: int, calibration: Calibration) -> Evidence:
        """What is known of a chunk: the signals of its best passage, and the best probability by each of them."""
        mine, best = self.document.of_chunk[index], self.best_of(index, calibration)
        if best is None:
            return Evidence(question, chunk)
        relative, probabilities = self.relative(), self.probabilities(calibration)
        known = {
            "attention": self.mass[best] is not None,
            "lexical": True,
            "passage": not np.isnan(self.likelihood[best]),
        }
        found = {name: float(relative[name][best]) if is_known else None for name, is_known in known.items()}
        return Evidence(
            question,
            chunk,
            found["attention"],
            found["lexical"],
            found["passage"],
            probabilities={name: float(values[list(mine)].max()) for name, values in probabilities.items()},
        )

    def sentence_scores(self, calibration: Calibration, passage: int) -> Floats:
        """How each sentence of a passage compares with the others of it: 0 for the best, (sentences,)."""
        mass = self.mass[passage]
        count = len(self.document.passages[passage].sentences)
        total = np.zeros(count)
        if mass is not None:
            total += np.log(np.maximum(mass, LEAST_MASS)) / calibration.spread["attention"]
        texts = [self.document.text_of(passage, place) for place in range(count)]
        words = LexicalIndex(texts).coverage(self.question)
        return _below_best(total + words / calibration.spread["lexical"], -np.inf)


def _below_best(values: Floats, floor: float) -> Floats:
    return np.maximum(values - values.max(), floor) if len(values) else values
