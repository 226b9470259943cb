"""Findings: the signals of a document's passages for one question, and their combination into a probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wim_kernel.common.chunk import Chunk
from wim_kernel.run.relevance.calibration import SIGNALS, Calibration
from wim_kernel.run.relevance.first_look import trust
from wim_kernel.run.relevance.passages import DocumentPassages
from wim_kernel.run.relevance.scores import Evidence

Floats = np.ndarray
LEAST_MASS = 1e-5  # attention below this counts as none
FLATTENING = 7.0
"""The divisor of scores if each passage was read alone, which keeps more of few passages: there a needless sentence
costs little, and a missing one may be the answer. On the 36 sets of three passages of ``benchmarks/order.py``, where a
third of the questions have another passage that repeats all their words, the embedded model then keeps the right
passage in 0.86 of the sets and 2.6 passages on average; with 3.0 it was 0.69 and 1.8."""
FLOOR = {"attention": -7.0, "lexical": -1.0, "passage": -5.0}
"""The lower bound of each signal, relative to the best passage."""


@dataclass
class Findings:
    """The signals of all passages of a document for one question; NaN or None where not measured.

    Attributes:
        document: the document's passages.
        coverage: share of the question's words in each passage, (passages,), 0 to 1.
        question: the question.
        mass: for each passage, the attention on each of its sentences, (sentences,), less that of a question about
            nothing.
        likelihood: mean log-probability of the question given each passage alone, (passages,), in nats, for passages
            on the shortlist.
        measured: the same of every passage ever read alone, by passage.
        alone: whether attention was measured on each passage alone, not on the whole document.
        seen: by passage, the boundary of the branch that measured the passage's attention, and the branch's token ids.
        again: the findings of the next round of the search.
        changes: how often a signal was set.
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
    changes: int = 0
    _relative: dict[str, Floats] | None = None
    _known: dict[str, Floats] | None = None

    @classmethod
    def of(cls, document: DocumentPassages, question: str) -> Findings:
        """The findings before the model has read anything: shared words only."""
        count = len(document)
        return cls(
            document,
            document.index.coverage(question),
            question,
            [None] * count,
            np.full(count, np.nan),
        )

    def only(self, passages: Sequence[int]) -> Findings:
        """The findings as if the document had no other passages."""
        chosen = list(passages)
        coverage, likelihood = self.coverage[chosen], self.likelihood[chosen]
        mass = [self.mass[index] for index in chosen]
        return Findings(self.document, coverage, self.question, mass, likelihood, self.alone)

    def relative(self) -> dict[str, Floats]:
        """Each signal less that of the best passage, (passages,) each: 0 for the best passage, negative for the others.

        Attention is in nats of its logarithm, shared words are a share of the question's words, likelihoods are in nats
        per token. Shared words weigh less if even the best passage has few of them. A passage whose likelihood was not
        measured gets slightly less than the worst measured one.
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
        self._relative = {**relative, "lexical": relative["lexical"] * self._own_trust}
        return self._relative

    def scores(self, calibration: Calibration, signals: tuple[str, ...] = SIGNALS) -> Floats:
        """The score of each passage, (passages,): the sum of its signals, each in units of the calibration's spread.

        Passages that were each read alone are mostly on one subject. Then shared words do not count unless they are the
        only signal, and likelihoods, which favour a passage that repeats the question, count half.
        """
        relative, spread = self.relative(), dict(calibration.spread)
        weights = dict.fromkeys(signals, 1.0)
        if self.alone:
            spread["attention"] = spread["alone"]
            if len(signals) > 1:
                weights |= {"lexical": 0.0, "passage": 0.5}
        return np.asarray(sum(weights[name] * relative[name] / spread[name] for name in signals))

    def probabilities(self, calibration: Calibration) -> dict[str, Floats]:
        """The probability that each passage holds evidence, (passages,): by each signal and ``"combined"``."""
        if self._known is not None:
            return self._known
        found = {name: calibration.probability(name, self.scores(calibration, (name,))) for name in SIGNALS}
        if self.alone:
            combined = calibration.probability("alone", self.scores(calibration) / FLATTENING)
        else:
            combined = calibration.probability(self._curve, self.scores(calibration))
        if self.again is not None:
            combined = np.maximum(combined, self.again.probabilities(calibration)["combined"])
        self._known = {**found, "combined": combined}
        return self._known

    @property
    def _curve(self) -> str:
        return "unattended" if all(part is None for part in self.mass) else "combined"

    def bounds(self, calibration: Calibration) -> Floats:
        """A first look: how probably each passage can hold evidence at most, by shared words alone, (passages,).

        The other signals are taken to be as good as they can be. The less shared words are to be trusted, the higher
        the bounds.
        """
        best = self.relative()["lexical"]
        if own := self._own_trust:
            best = best * (self.trust / own)
        return calibration.probability("unattended", best / calibration.spread["lexical"])

    @property
    def trust(self) -> float:
        """How far a first look may trust shared words, 0 to 1: no further than their ranking does."""
        return min(self._own_trust, trust(self.document.index.share(self.question)))

    @property
    def _own_trust(self) -> float:
        return trust(self.coverage)

    def bound_of(self, chunk: int, calibration: Calibration) -> float:
        """The highest of the bounds of a chunk's passages; 0 for a chunk without text."""
        bounds = self.bounds(calibration)
        return float(max((bounds[passage] for passage in self.document.of_chunk[chunk]), default=0.0))

    def changed(self) -> None:
        """Drop cached results after a signal was set."""
        self._relative = self._known = None
        self.changes += 1

    def count_only(self, shortlist: Sequence[int], among: Sequence[int]) -> None:
        """Among some passages, use the likelihoods of the shortlist only.

        While a document is read, later passages push earlier ones off the shortlist. The result at the end must not
        depend on which passages were on it before.

        Args:
            shortlist: the passages whose likelihoods are used.
            among: the passages that are affected.
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
        """A chunk's evidence: the signals of its best passage, and the highest probability by each signal."""
        own, best = self.document.of_chunk[index], self.best_of(index, calibration)
        if best is None:
            return Evidence(question, chunk)
        relative, probabilities = self.relative(), self.probabilities(calibration)
        is_measured = {
            "attention": self.mass[best] is not None,
            "lexical": True,
            "passage": not np.isnan(self.likelihood[best]),
        }
        found = {
            name: float(relative[name][best]) if measured else None for name, measured in is_measured.items()
        }
        return Evidence(
            question,
            chunk,
            found["attention"],
            found["lexical"],
            found["passage"],
            probabilities={name: float(values[list(own)].max()) for name, values in probabilities.items()},
        )

    def sentence_scores(self, calibration: Calibration, passage: int) -> Floats:
        """The score of each sentence of a passage, (sentences,): 0 for the best sentence, negative for the others."""
        mass = self.mass[passage]
        count = len(self.document.passages[passage].sentences)
        total = np.zeros(count)
        if mass is not None:
            total += np.log(np.maximum(mass, LEAST_MASS)) / calibration.spread["attention"]
        words = self.document.sentence_index(passage).coverage(self.question)
        return _below_best(total + words / calibration.spread["lexical"], -np.inf)


def _below_best(values: Floats, floor: float) -> Floats:
    return np.maximum(values - values.max(), floor) if len(values) else values
