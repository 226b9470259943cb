"""Checks that a model works by itself: its own forward pass runs and gives finite logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError


class UnsoundModelError(UnsupportedModelError):
    """A model's own forward pass fails, or gives NaN or infinity."""


def plain_logits(model: PreTrainedModel, ids: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The logits (2, vocabulary) of the last two tokens of each text, by the model's own forward pass.

    Raises:
        UnsoundModelError: if the forward pass fails, or gives NaN or infinity.
    """
    name = type(model).__name__
    try:
        found = [model(torch.tensor([list(text)], device=device)).logits[0, -2:] for text in ids]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's code raises
        raise UnsoundModelError(
            f"{name} cannot be used, since its own forward pass fails ({type(error).__name__}: {error}): see that its "
            "config fits its weights."
        ) from error
    if not all(bool(torch.isfinite(logits).all()) for logits in found):
        raise UnsoundModelError(_explain_nan(model))
    return found


def _explain_nan(model: PreTrainedModel) -> str:
    """The message for NaN or infinity: whether weights or the dtype are to blame."""
    name = type(model).__name__
    for weight_name, weight in model.named_parameters():
        if (
            weight.is_floating_point()
            and weight.device.type != "meta"
            and not bool(torch.isfinite(weight).all())
        ):
            return f"Weights of {name} hold NaN or infinity, such as {weight_name}: load a checkpoint that is whole."
    return (
        f"A plain forward pass of {name} gives NaN or infinity in {model.dtype}, though its weights are numbers: load "
        "it in another dtype, such as float32."
    )
