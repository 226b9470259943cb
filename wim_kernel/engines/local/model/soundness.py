"""Checks that a model works by itself: its own forward pass runs and gives finite logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.model.calling import forward_of


class UnsoundModelError(UnsupportedModelError):
    """A model's own forward pass fails, or gives NaN or infinity."""


def plain_logits(model: PreTrainedModel, ids: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The logits (2, vocabulary) of the last two tokens of each text, by the model's own forward pass.

    Raises:
        UnsoundModelError: if the forward pass fails, or gives NaN or infinity.
    """
    name = type(model).__name__
    try:
        found = [forward_of(model)(torch.tensor([list(text)], device=device)).logits[0, -2:] for text in ids]
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


def explain_difference(model: PreTrainedModel, ids: Sequence[int], device: torch.device) -> str:
    """Why a model that runs gives other results when a text is cut up, if its code shows it; otherwise empty."""
    tokens = torch.tensor([list(ids)], device=device)
    call, accepted = forward_of(model), inspect.signature(model.forward).parameters
    before = _tensors_of_modules(model)
    call(tokens, use_cache=True)
    if any(before.get(name) is not tensor for name, tensor in _tensors_of_modules(model).items()):
        return "it keeps states in its modules and not in a cache, so that branches would mix them"
    if "position_ids" in accepted:
        positions = torch.arange(len(ids), device=device)[None]
        usual, numbered = call(tokens).logits, call(tokens, position_ids=positions).logits
        if not (usual - numbered).norm() <= 1e-3 * usual.norm():
            return "it numbers positions in another way than from 0"
    return ""


def _tensors_of_modules(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """Tensors that modules hold as plain attributes."""
    return {
        (name, attribute): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


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
