"""Weights of several layers moved into one tensor, of which each layer's parameter becomes a view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def are_views(whole: Tensor, parts: Sequence[Tensor | None]) -> bool:
    """Whether the parts are consecutive views of one tensor."""
    address, storage_ptr = whole.data_ptr(), whole.untyped_storage().data_ptr()
    for part in parts:
        if part is None or part.dtype != whole.dtype or part.data_ptr() != address:
            return False
        if part.untyped_storage().data_ptr() != storage_ptr:
            return False
        address += part.nbytes
    return True


def concatenate(parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate parameters; each then becomes a view of the result."""
    first = parameters[0].data
    if are_views(first, parameters):  # they were concatenated before
        return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(
        parameters, torch.split(whole, [len(item) for item in parameters]), strict=True
    ):
        parameter.data = part
    return whole
