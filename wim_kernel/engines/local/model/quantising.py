"""Which weights a model's linear layers are given, by the option ``weights``."""

from __future__ import annotations

from typing import get_args

from transformers import PreTrainedModel

from wim_kernel.engines.loading_options import Weights
from wim_kernel.engines.local.model import int8_linear


def quantise(model: PreTrainedModel, weights: Weights | None) -> None:
    """Quantise a model in place; with None leave it as it is.

    Raises:
        ValueError: if there are no such weights, or the model cannot have them where it is.
    """
    if weights is None:
        return
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {' or '.join(map(repr, get_args(Weights)))} or None, not {weights!r}.")
    int8_linear.quantise(model)
