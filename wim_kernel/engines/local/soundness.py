"""What is wrong with a model itself, whatever way it is run."""

from __future__ import annotations

from typing import NoReturn

import torch
from transformers import PreTrainedModel

from wim_kernel.errors import UnsupportedModelError


def refuse_without_numbers(model: PreTrainedModel) -> NoReturn:
    """Say what about a model is no number, once its results turned out not to be.

    Raises:
        UnsupportedModelError: always. It names a weight, or the type in which results overflow.
    """
    name = type(model).__name__
    for weight_name, weight in model.named_parameters():
        if (
            weight.is_floating_point()
            and weight.device.type != "meta"
            and not bool(torch.isfinite(weight).all())
        ):
            raise UnsupportedModelError(
                f"The weights of {name} hold NaN or infinity, such as {weight_name}: load a checkpoint that is whole."
            )
    raise UnsupportedModelError(
        f"A plain forward pass of {name} gives NaN or infinity in {model.dtype}, though its weights are numbers: load "
        "it in another dtype, such as float32."
    )
