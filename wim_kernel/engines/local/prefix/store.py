"""The keys and values of one layer of a prefix, in preallocated buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.triton_launch import ALIGNED, table_row
from wim_kernel.engines.local.model.runner import upload


class LayerStore:
    """Keys and values of one layer on the layer's device: (heads, capacity, head size) each.

    Args:
        key: keys of any number of tokens, (heads, M, D), for sizes, dtype and device.
        value: values of any number of tokens, (heads, M, Dv), for sizes, dtype and device.
        capacity: number of tokens to make room for.
        by_token: memory layout. True: token by token, so that strides do not depend on the capacity, as the Triton
            kernels and cuDNN need it. False: head by head, which a CPU reads faster.
    """

    def __init__(self, key: Tensor, value: Tensor, capacity: int, *, by_token: bool) -> None:
        self.by_token = by_token
        self.keys, self.values = (
            item.new_empty(capacity, item.shape[0], item.shape[-1]).transpose(0, 1)
            if by_token
            else item.new_empty(item.shape[0], capacity, item.shape[-1])
            for item in (key, value)
        )
        self._table: Tensor | None = None

    def write(self, key: Tensor, value: Tensor, start: int) -> None:
        """Write keys (heads, M, D) and values (heads, M, Dv) to positions from ``start`` on."""
        self.keys[:, start : start + key.shape[1]] = key
        self.values[:, start : start + value.shape[1]] = value

    def resized(self, tokens: int, capacity: int) -> LayerStore:
        """A store of another capacity with the first ``tokens`` positions of this one."""
        store = LayerStore(self.keys, self.values, capacity, by_token=self.by_token)
        store.write(self.keys[:, :tokens], self.values[:, :tokens], 0)
        return store

    def stored(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The first ``tokens`` keys and values in the order of the memory layout: token by token or head by head."""
        if self.by_token:
            return self.keys.transpose(0, 1)[:tokens], self.values.transpose(0, 1)[:tokens]
        return self.keys[:, :tokens], self.values[:, :tokens]

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def dtypes(self) -> tuple[str, str]:
        """The names of the dtypes of keys and values, such as ``"float32"``."""
        keys, values = (str(item.dtype).removeprefix("torch.") for item in (self.keys, self.values))
        return keys, values

    def own_buffers(self, rows: int, room: int) -> tuple[Tensor, Tensor]:
        """Allocate buffers for rows' own keys and values, (rows, room or a little more, heads, head size) each."""
        room = -(-room // ALIGNED) * ALIGNED
        keys, values = (
            item.new_empty(rows, room, item.shape[0], item.shape[2]) for item in (self.keys, self.values)
        )
        return keys, values

    @property
    def table(self) -> Tensor:
        """The layer's row of the kernels' address table for extending: "own" tokens are written to the store itself."""
        if self._table is None:
            row = table_row(self.keys, self.values, [self.keys], [self.values])
            self._table = upload(row, torch.int64, self.keys.device)
        return self._table
