"""Bootstrap intervals, and figures of how chunks were chosen."""

from __future__ import annotations

import numpy as np
import pytest

from wim_integrations.evaluation.statistics import (
    auc,
    bootstrap,
    calibration,
    calibration_error,
    citing,
    selection,
)


def test_an_interval_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found = bootstrap([values.tolist()])
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found is not None
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert found.excludes_zero


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        found = bootstrap([rng.binomial(1, 0.4, 60).tolist()], resamples=500, seed=trial)
        assert found is not None
        covered += found.low <= 0.4 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_tasks_weigh_the_same_whatever_their_size() -> None:
    found = bootstrap([[1.0] * 90, [0.0] * 10, []])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_interval_and_nothing_gives_none() -> None:
    values = [[0.0, 1.0, 1.0, 0.0, 1.0]]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap([]) is None
    assert bootstrap([[]]) is None


@pytest.mark.parametrize(
    ("scores", "gold", "expected"),
    [
        ([0.9, 0.1, 0.2], [True, False, False], 1.0),
        ([0.1, 0.9], [True, False], 0.0),
        ([0.5, 0.5], [True, False], 0.5),
        ([0.5, 0.9, 0.1], [True, False, False], 0.5),
        ([0.5, 0.9], [True, True], None),
        ([0.5, 0.9], [False, False], None),
    ],
)
def test_auc_of_known_rankings(scores: list[float], gold: list[bool], expected: float | None) -> None:
    assert auc(scores, gold) == expected


def test_precision_and_recall_count_over_questions() -> None:
    found = selection(
        kept=[[True, True, False], [False, False], [True]],
        scores=[[0.9, 0.8, 0.1], [0.4, 0.2], [0.7]],
        gold=[[True, False, False], [True, False], [False]],  # the last question has no gold chunk
    )
    assert found is not None
    assert (found.precision, found.recall, found.auc, found.none_kept) == (0.5, 0.5, 1.0, 0.5)
    assert found.questions == 2


def test_choices_without_kept_or_gold_chunks_have_no_figures() -> None:
    found = selection([[False, False]], [[0.1, 0.2]], [[True, False]])
    assert found is not None
    assert found.precision is None
    assert selection([[True]], [[0.9]], [[False]]) is None
    assert selection([], [], []) is None


def test_calibration_compares_relevance_with_gold_shares() -> None:
    table = calibration([0.05, 0.95, 1.0, 0.92], [False, True, True, False])
    assert [(row.low, row.count, row.gold) for row in table] == [
        (0.0, 1, 0.0),
        (0.9, 3, pytest.approx(2 / 3)),
    ]
    error = (0.05 + 3 * ((0.95 + 1.0 + 0.92) / 3 - 2 / 3)) / 4
    assert calibration_error(table) == pytest.approx(error)
    assert calibration_error([]) is None
    assert calibration([], []) == []


def reference(**fields: object) -> dict[str, object]:
    return {"marked": True, "in_source": True, "located": "exact", "has_answer": None, **fields}


def test_references_are_counted_over_all_answers() -> None:
    found = citing(
        [
            (reference(has_answer=True), reference(has_answer=False, located="fuzzy")),
            (),
            (reference(in_source=False, located="unlocated"), reference(marked=False)),
        ]
    )
    assert found is not None
    assert (found.questions, found.references) == (3, 4)
    assert found.cited == pytest.approx(2 / 3)
    assert (found.marked, found.in_source, found.exact, found.has_answer) == (0.75, 0.75, 0.5, 0.5)


def test_references_of_answers_without_any_have_no_figures() -> None:
    assert citing([]) is None
    found = citing([()])
    assert found is not None
    assert (found.cited, found.references, found.in_source, found.has_answer) == (0.0, 0, None, None)
