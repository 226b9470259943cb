"""Serialises the state of any cache layer as tensors and JSON data: for layer classes that the kernel does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flatten_state(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON data. Its tensors are copied to host memory, into ``tensors``, under names with ``name`` first.

    Raises:
        TypeError: for anything but tensors, types, devices, plain values, and dicts and lists of them.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, flatten_state(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        parts = [flatten_state(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: parts}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": None}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which is no plain data.")


def restore_state(data: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The inverse of `flatten_state`, with copies of the tensors on ``device``."""
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "tensor":
        return tensors[value].to(device, copy=True)
    if kind == "dict":
        return {key: restore_state(item, tensors, device) for key, item in value}
    if kind in ("list", "tuple"):
        parts = [restore_state(item, tensors, device) for item in value]
        return parts if kind == "list" else tuple(parts)
    return device if kind == "device" else getattr(torch, value)
