"""Identifies a model's weights: for readings that are kept, and for calibrations.

Weights may be quantised, spread over tensors of a package's own, offloaded, or beside adapters that are switched on and
off. So they are found as plain tensors, and settings of adapters count too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

Version = tuple[list[tuple[int, int]], list[str]]
"""What changes when weights or adapters are changed: address and version of each tensor, and settings of adapters."""


def version_of(model: nn.Module) -> Version:
    """The version of a model's weights, without reading them."""
    tensors = [
        (part.data_ptr() if part.device.type != "meta" else 0, 0 if part.is_inference() else part._version)
        for _, tensor in _stored(model)
        for _, part in plain_parts("", tensor)
    ]
    return tensors, _adapter_settings(model)


def weights_digest(model: nn.Module) -> str:
    """A digest of samples of each weight, of its dtype and shape, and of the adapters' settings."""
    digest, samples = hashlib.blake2b(digest_size=16), []
    for name, tensor in _loaded(model):
        for part_name, part in plain_parts(name, tensor):
            digest.update(f"{part_name} {tuple(part.shape)} {part.dtype}".encode())
            flat = _numbers(part).flatten()
            samples.append(flat[:: max(1, len(flat) // 64)][:64].float().cpu())
    digest.update(torch.cat(samples).numpy().tobytes())
    for setting in _adapter_settings(model):
        digest.update(setting.encode())
    return digest.hexdigest()


def rounded_digest(model: nn.Module) -> str:
    """A digest of a few numbers of each weight, rounded so that it is the same for every dtype of plain weights."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(type(model).__name__.encode())
    samples = [
        _numbers(part).flatten()[:8].float().to("cpu", torch.bfloat16)
        for name, weight in sorted(_loaded(model, buffers=False), key=lambda item: item[0])
        for _, part in plain_parts(name, weight)
    ]
    digest.update(torch.cat(samples).float().numpy().tobytes())
    return digest.hexdigest()


_EXACT = (torch.float32, torch.float64, torch.int64, torch.bool)  # the last two are indices and masks


def is_full_precision(model: nn.Module) -> bool:
    """Whether all weights have at least 32 bits; otherwise products may round more coarsely."""
    return all(part.dtype in _EXACT for _, weight in _stored(model) for _, part in plain_parts("", weight))


def _stored(model: nn.Module, *, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The parameters, and the buffers that a checkpoint holds, each once."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules() if buffers else ():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def _loaded(model: nn.Module, *, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The same, where offloaded weights are loaded one module at a time."""
    owners = dict(model.named_modules())
    for name, tensor in _stored(model, buffers=buffers):
        if tensor.device.type != "meta":
            yield name, tensor
            continue
        owner, _, own = name.rpartition(".")
        with ExitStack() as stack:
            stack.enter_context(align_module_device(owners[owner], torch.device("cpu")))
            yield name, getattr(owners[owner], own)


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor as plain ones: itself, or what a quantised tensor consists of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    for part in flatten()[0]:
        yield from plain_parts(f"{name}.{part}", getattr(tensor, part))


def _numbers(tensor: Tensor) -> Tensor:
    """A tensor of a dtype that converts to float32: types that only name bits are read as bytes."""
    tensor = tensor.detach()
    try:
        tensor.flatten()[:1].float()
    except (RuntimeError, NotImplementedError):
        return tensor.contiguous().view(torch.uint8)
    return tensor


def _adapter_settings(model: nn.Module) -> list[str]:
    """What modules say about their adapters, such as which are active or merged."""
    return [
        f"{name}.{attribute}={value}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "adapter" in attribute and _is_plain(value)
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | str) or (
        isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    )
