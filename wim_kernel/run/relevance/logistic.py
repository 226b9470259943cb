"""Logistic regression on one feature."""

from __future__ import annotations

import numpy as np

Floats = np.ndarray


def logistic(scores: Floats, labels: Floats, penalty: float = 0.1) -> tuple[float, float]:
    """Fit a logistic curve by Newton's method on the penalised log-likelihood; returns its slope and intercept.

    Args:
        scores: the feature, (n,).
        labels: the classes, (n,), 0 or 1.
        penalty: the weight of the slope's square in the loss.
    """
    rate = np.clip(labels.mean(), 1e-3, 1 - 1e-3)
    inputs = np.stack([scores, np.ones_like(scores)], 1)
    weights = np.array([0.0, np.log(rate / (1 - rate))])
    ridge = np.array([penalty, 1e-6])

    def loss(at: Floats) -> float:
        z = inputs @ at
        return float((np.logaddexp(0, z) - labels * z).sum() + 0.5 * (ridge * at * at).sum())

    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -40, 40)))
        gradient = inputs.T @ (probability - labels) + ridge * weights
        curvature = (
            (inputs * (probability * (1 - probability))[:, None]).T @ inputs
            + np.diag(ridge)
            + 1e-9 * np.eye(2)
        )
        step, scale = np.linalg.solve(curvature, gradient), 1.0
        while loss(weights - scale * step) > loss(weights) and scale > 1e-6:
            scale /= 2
        weights = weights - scale * step
        if np.abs(scale * step).max() < 1e-7:
            break
    return float(weights[0]), float(weights[1])
