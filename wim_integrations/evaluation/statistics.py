"""Statistics: means with paired bootstrap intervals, and the quality of chosen chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_BATCH = 1_000  # resamples drawn at once


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0


def bootstrap(
    groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean over groups of their means, with a 95% percentile bootstrap interval.

    Paired differences give a paired interval. Questions are drawn within their group, so that each group keeps its
    weight.

    Args:
        groups: values, such as differences of two methods' scores question by question, grouped by task. Empty groups
            do not count.
        resamples: the number of bootstrap samples.
        seed: the seed of the samples.

    Returns:
        The interval, or None if there are no values.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in groups if len(values)]
    if not arrays:
        return None
    rng = np.random.default_rng(seed)
    means: NDArray[np.float64] = np.zeros(resamples)
    for start in range(0, resamples, _BATCH):
        count = min(_BATCH, resamples - start)
        for values in arrays:
            drawn = values[rng.integers(0, len(values), (count, len(values)))]
            means[start : start + count] += drawn.mean(axis=1) / len(arrays)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(np.mean([values.mean() for values in arrays])), float(low), float(high))


def auc(scores: Sequence[float], gold: Sequence[bool]) -> float | None:
    """The probability that a gold chunk has a higher score than another chunk; ties count half.

    Returns:
        None where all chunks are gold, or none is.
    """
    values, is_gold = np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=bool)
    above, below = values[is_gold], values[~is_gold]
    if not len(above) or not len(below):
        return None
    differences = above[:, None] - below[None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


@dataclass(frozen=True)
class Selection:
    """The quality of chosen chunks, over questions with known gold chunks.

    Attributes:
        precision: share of the kept chunks that are gold; None if none was kept.
        recall: share of the gold chunks that were kept.
        auc: mean over questions of `auc`; None if no question has one.
        none_kept: share of the questions for which no chunk was kept.
        questions: how many questions there are.
    """

    precision: float | None
    recall: float
    auc: float | None
    none_kept: float
    questions: int


def selection(
    kept: Sequence[Sequence[bool]], scores: Sequence[Sequence[float]], gold: Sequence[Sequence[bool]]
) -> Selection | None:
    """Precision and recall of the kept chunks, counted over all questions, and the area under the curve within each.

    Args:
        kept: for each question, which chunks were kept.
        scores: for each question, each chunk's score.
        gold: for each question, which chunks are gold.

    Returns:
        None if no question has a gold chunk.
    """
    rows = [row for row in zip(kept, scores, gold, strict=True) if any(row[2])]
    if not rows:
        return None
    hits = sum(k and g for kept_row, _, gold_row in rows for k, g in zip(kept_row, gold_row, strict=True))
    chosen = sum(sum(kept_row) for kept_row, _, _ in rows)
    areas = [area for _, row_scores, row_gold in rows if (area := auc(row_scores, row_gold)) is not None]
    return Selection(
        precision=hits / chosen if chosen else None,
        recall=hits / sum(sum(gold_row) for _, _, gold_row in rows),
        auc=sum(areas) / len(areas) if areas else None,
        none_kept=sum(not any(kept_row) for kept_row, _, _ in rows) / len(rows),
        questions=len(rows),
    )


@dataclass(frozen=True)
class Citing:
    """How far references can be relied on, over questions that were asked for them.

    Attributes:
        questions: how many questions there are.
        cited: share of the questions whose answer has a reference.
        references: how many references there are.
        marked: share of the references for which the model wrote a marker.
        in_source: share of the references whose quote the document has, character for character.
        exact: share of the references whose margin's words the document has, up to how they are set.
        has_answer: share of the references whose quote holds a gold answer, where one can; None if none can.
    """

    questions: int
    cited: float
    references: int
    marked: float | None
    in_source: float | None
    exact: float | None
    has_answer: float | None


def citing(references: Sequence[Sequence[Mapping[str, Any]]]) -> Citing | None:
    """Figures of references.

    Args:
        references: for each question, its answer's references, as records have them.

    Returns:
        None if there are no questions.
    """
    if not references:
        return None
    every = [reference for row in references for reference in row]

    def share(values: Sequence[bool]) -> float | None:
        return sum(values) / len(values) if values else None

    return Citing(
        questions=len(references),
        cited=sum(map(bool, references)) / len(references),
        references=len(every),
        marked=share([each["marked"] for each in every]),
        in_source=share([each["in_source"] for each in every]),
        exact=share([each["located"] == "exact" for each in every]),
        has_answer=share([each["has_answer"] for each in every if each["has_answer"] is not None]),
    )


@dataclass(frozen=True)
class CalibrationBin:
    """Chunks whose relevance is within a range.

    Attributes:
        low: the lower bound of the range.
        high: the upper bound of the range.
        count: the number of chunks.
        relevance: the chunks' mean relevance.
        gold: the share of gold chunks.
    """

    low: float
    high: float
    count: int
    relevance: float
    gold: float


def calibration(relevance: Sequence[float], gold: Sequence[bool], bins: int = 10) -> list[CalibrationBin]:
    """A reliability table: chunks by relevance, in ranges of equal width. Empty ranges are left out."""
    values, is_gold = np.asarray(relevance, dtype=np.float64), np.asarray(gold, dtype=bool)
    bin_of = np.minimum((values * bins).astype(int), bins - 1)
    table = []
    for index in range(bins):
        inside = bin_of == index
        if inside.any():
            table.append(
                CalibrationBin(
                    index / bins,
                    (index + 1) / bins,
                    int(inside.sum()),
                    float(values[inside].mean()),
                    float(is_gold[inside].mean()),
                )
            )
    return table


def calibration_error(table: Sequence[CalibrationBin]) -> float | None:
    """The expected calibration error: mean distance of relevance from the share of gold chunks, weighted by count."""
    total = sum(row.count for row in table)
    if not total:
        return None
    return sum(row.count * abs(row.relevance - row.gold) for row in table) / total
