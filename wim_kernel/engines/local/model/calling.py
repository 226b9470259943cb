"""How a model is called that is compiled, or whose weights are offloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import PreTrainedModel


def forward_of(model: nn.Module) -> Callable[..., Any]:
    """A call of a model without ``torch.compile``, which would compile anew for each of the kernel's many shapes."""
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    return model._call_impl if compiled else model


def input_device(model: PreTrainedModel) -> torch.device:
    """The device of a model's inputs: that of its embeddings, or to which they are loaded if they are offloaded."""
    embeddings = model.get_input_embeddings()
    device = next(embeddings.parameters()).device
    if device.type == "meta":
        with align_module_device(embeddings):
            device = next(embeddings.parameters()).device
    return device
