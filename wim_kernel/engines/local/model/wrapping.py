"""Models that come in a wrapper: with adapters around them, or compiled."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.model.calling import input_device
from wim_kernel.engines.local.model.soundness import plain_logits


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model that a model is, or that it wraps.

    A wrapper's own ``forward`` is not used: adapters inside the layers work without it, and a compiled model runs as it
    was before it was compiled, since the kernel's passes have other forms.

    Raises:
        UnsupportedModelError: if there is no transformers model, or the wrapper changes what it computes, for example
            by virtual tokens in front of the text.
    """
    if isinstance(model, PreTrainedModel):
        return model
    inner: PreTrainedModel | None = getattr(model, "_orig_mod", None)  # torch.compile's
    if isinstance(inner, nn.Module):
        return unwrapped(inner)
    inside = model.modules() if isinstance(model, nn.Module) else ()
    inner = next((part for part in inside if isinstance(part, PreTrainedModel)), None)
    name = type(model).__name__
    if inner is None:
        raise UnsupportedModelError(f"{name} is no causal language model of transformers.")
    if not _computes_the_same(model, inner):
        raise UnsupportedModelError(
            f"{name} computes something else than the {type(inner).__name__} in it, for example because it puts "
            "virtual tokens in front of the text. Only adapters inside the layers are supported, such as LoRA."
        )
    return inner


@torch.inference_mode()
def _computes_the_same(wrapper: nn.Module, inner: PreTrainedModel) -> bool:
    ids, device = [[3, 1, 4, 1, 5, 9]], input_device(inner)
    modes = [(module, module.training) for module in wrapper.modules()]
    wrapper.train(False)
    try:
        (wanted,) = plain_logits(inner, ids, device)
        found = wrapper(input_ids=torch.tensor(ids, device=device)).logits[0, -2:]
    finally:
        for module, training in modes:
            module.training = training
    return bool((found - wanted).norm() <= 1e-3 * wanted.norm())
