"""Where the keys and values of a batch lie in device memory, as the kernels' address table says it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.triton_launch import table_row
from wim_kernel.engines.local.prefix.store import LayerStore


class Addresses:
    """The addresses of a batch's keys and values, from which its part of the kernels' address table is made."""

    def __init__(self, stores: Sequence[LayerStore], own: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.prefix = torch.tensor([table_row(store.keys, store.values, [], []) for store in stores])
        self._own = torch.tensor([[item.data_ptr() for item in pair] for pair in own])
        self._row_bytes = torch.tensor([[item[0].nbytes for item in pair] for pair in own])

    def own(self, kind: int, rows: Sequence[int]) -> Tensor:
        """The addresses of rows' own keys (``kind`` 0) or values (``kind`` 1), (layers, rows)."""
        return self._own[:, kind, None] + self._row_bytes[:, kind, None] * torch.tensor(rows)


def address_table(
    addresses: Sequence[Addresses], rows: Sequence[Sequence[int]], size: int, prefixes: Sequence[int] = ()
) -> Tensor:
    """The address table for rows of batches, filled up with absent rows to ``size``; on the host.

    Args:
        addresses: those of each batch.
        rows: the rows of each batch.
        size: number of rows.
        prefixes: for several prefixes, the batch whose prefix each block of rows sees.
    """
    absent = torch.zeros(len(addresses[0].prefix), size - sum(map(len, rows)), dtype=torch.int64)
    own = [
        [*(each.own(kind, some) for each, some in zip(addresses, rows, strict=True)), absent]
        for kind in (0, 1)
    ]
    several = [addresses[batch].prefix for batch in prefixes]
    return torch.cat([addresses[0].prefix, *own[0], *own[1], *several], 1)
