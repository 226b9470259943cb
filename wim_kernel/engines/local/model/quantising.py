"""Which weights a model's linear layers are given, by the option ``weights``."""

from __future__ import annotations

from collections.abc import Set
from typing import get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.loading_options import Weights
from wim_kernel.engines.local.model import float8_linear
from wim_kernel.engines.local.model.float8_linear import Float8Linear
from wim_kernel.engines.local.model.int8_linear import Int8Linear
from wim_kernel.engines.local.model.quantised_linear import QuantisedLinear
from wim_kernel.engines.local.model.soundness import plain_logits

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that are given the same input, and are computed as one product."""

MOST_ERROR = 0.8
"""Most relative error of logits after quantising; a model that has become another one has more than 1."""


def quantise(model: PreTrainedModel, weights: Weights | None) -> None:
    """Quantise the linear layers of a model in place; with None leave it as it is.

    Embeddings, norms and whatever else is no `torch.nn.Linear` stay as they are, an embedding that shares its weights
    with the output layer as well. With ``"fp8"`` the output layer stays as it is, too.

    Args:
        model: a causal LM.
        weights: see `wim_kernel.engines.loading_options.EngineOptions`.

    Raises:
        ValueError: see `check`.
    """
    if weights is not None:
        check(model, weights)
        kind = Int8Linear if weights == "int8" else Float8Linear
        _replace(model, set(_plain_layers(model, weights)), kind)


def quantise_checked(model: PreTrainedModel, weights: Weights, device: torch.device) -> None:
    """Quantise a model, and check that its results are similar: code may read the weights of a layer by itself.

    Raises:
        UnsupportedModelError: if they are.
        ValueError: see `check`.
    """
    ids = [list(range(3, 35))]
    with torch.inference_mode():
        before = plain_logits(model, ids, device)[0].float()
    quantise(model, weights)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with torch.inference_mode():
        after = plain_logits(model, ids, device)[0].float()
    error = float((after - before).norm() / before.norm())
    if not error < MOST_ERROR:
        raise UnsupportedModelError(
            f"With weights={weights!r} the logits of {type(model).__name__} differ by {error:.0%}: load it without."
        )


def check(model: PreTrainedModel, weights: Weights | None) -> None:
    """Check that a model's linear layers can be quantised.

    Raises:
        ValueError: if there are no such weights, the model cannot have them where it is, or it has no plain linear
            layers.
    """
    if weights is None:
        return
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {' or '.join(map(repr, get_args(Weights)))} or None, not {weights!r}.")
    found = _plain_layers(model, weights)
    _check_devices({layer.weight.device for layer in found.values()}, weights)
    in_use = any("forward" in vars(layer) for layer in model.modules() if isinstance(layer, nn.Linear))
    if not found or in_use:
        raise ValueError(
            f"{type(model).__name__} has no linear layers that weights={weights!r} could quantise: it is quantised "
            "already, offloaded, or in use by another kernel."
        )


def _plain_layers(model: PreTrainedModel, weights: Weights) -> dict[int, nn.Linear]:
    """The layers to quantise, by their ids."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _is_plain(layer)]
    if weights == "fp8":
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        layers = [layer for layer in layers if layer is not output and float8_linear.fits(layer)]
    return {id(layer): layer for layer in layers}


def _check_devices(devices: set[torch.device], weights: Weights) -> None:
    kinds = {device.type for device in devices}
    where = ", ".join(sorted(kinds))
    if weights == "int8" and kinds - {"cpu"}:
        raise ValueError(
            f"weights='int8' is for models on a CPU, and this one is on {where}: load it with device='cpu', with "
            "weights='fp8', or without the option."
        )
    if weights == "fp8" and not all(map(float8_linear.multiplies_float8, devices)):
        raise ValueError(
            f"weights='fp8' is for models on GPUs that multiply in float8 (compute capability 8.9 or higher), and this "
            f"one is on {where}: load it there, with weights='int8' on a CPU, or without the option."
        )


def _replace(model: PreTrainedModel, ids: Set[int], kind: type[QuantisedLinear]) -> None:
    """Put quantised layers in place of plain ones, by their ids; each plain one is freed before the next is made."""
    replaced: dict[int, QuantisedLinear] = {}
    for parent in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in parent.named_children() if id(child) in ids]:
            child = getattr(parent, name)
            if isinstance(child, nn.Linear):
                if id(child) not in replaced:
                    replaced[id(child)] = kind(child)
                setattr(parent, name, replaced[id(child)])
            del child
        for names in SAME_INPUT:
            layers = [getattr(parent, name, None) for name in names]
            same = [layer for layer in layers if isinstance(layer, kind)]
            if len(same) == len(names) and len({layer.in_features for layer in same}) == 1:
                group = kind.grouped(same)
                for layer in same:
                    layer.group = group


def _is_plain(layer: nn.Linear) -> bool:
    return type(layer) is nn.Linear and "forward" not in vars(layer) and layer.weight.is_floating_point()
