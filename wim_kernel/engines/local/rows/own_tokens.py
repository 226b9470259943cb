"""What rows of a batch in PyTorch add after the shared prefix: buffers of keys and values, and attention to them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams, Mask, attend


class OwnBuffers:
    """Keys and values of rows' own tokens: a pair of buffers a layer, made when the layer is first written.

    Args:
        rows: number of rows.
        room: number of tokens that each row may add.
        zeroed: whether slots may be read that no pass has written: NaN counts even where it is masked.
    """

    def __init__(self, rows: int, room: int, *, zeroed: bool) -> None:
        self.rows = rows
        self.room = room
        self.zeroed = zeroed
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, rows: slice, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new tokens of some rows.

        Args:
            layer: index of the layer.
            rows: which rows.
            slot: of the first of the tokens.
            key: (rows, key heads, M, D).
            value: (rows, key heads, M, Dv).

        Returns:
            The keys and values of these rows up to the last of the tokens.
        """
        if layer not in self.layers:
            self.layers[layer] = self._buffer(key), self._buffer(value)
        keys, values = self.layers[layer]
        end = slot + key.shape[2]
        keys[rows, :, slot:end] = key
        values[rows, :, slot:end] = value
        return keys[rows, :, :end], values[rows, :, :end]

    def select(self, rows: list[int]) -> None:
        """Keep only ``rows``, ascending."""
        self.rows = len(rows)
        for layer, (keys, values) in self.layers.items():
            index = torch.tensor(rows, dtype=torch.long, device=keys.device)
            self.layers[layer] = keys.index_select(0, index), values.index_select(0, index)

    def _buffer(self, like: Tensor) -> Tensor:
        shape = self.rows, like.shape[1], self.room, like.shape[-1]
        return like.new_zeros(shape) if self.zeroed else like.new_empty(shape)


class OwnTokens:
    """Attention of rows of one batch to their own tokens, those after the prefix, in one forward pass.

    Args:
        buffers: those of the batch.
        rows: the rows of the batch that run.
        lengths: number of prefix tokens that each of them sees.
        pads: number of padding slots before each one's first token.
        slot: slot of the buffers to which the pass writes its first token.
        width: number of tokens that the pass adds to each row.
    """

    def __init__(
        self,
        buffers: OwnBuffers,
        rows: slice,
        lengths: list[int],
        pads: list[int],
        slot: int,
        width: int,
    ) -> None:
        self.buffers = buffers
        self.rows = rows
        self.slot = slot
        self.end = slot + width
        self.lengths = lengths
        self.pads = torch.tensor(pads)[:, None]
        self.positions = torch.tensor(self.lengths)[:, None] - self.pads + torch.arange(slot, self.end)[None]
        self.masks: dict[tuple[Hashable, torch.device], Mask | None] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        params: AttentionParams,
        plain: bool,
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values and attend to the rows' own tokens.

        Args:
            layer: index of the layer.
            query: (rows, key heads, groups, M, D).
            key: (rows, key heads, M, D).
            value: (rows, key heads, M, Dv).
            params: scale, window and softcap.
            plain: whether attention is causal and nothing else for all rows; see `AttentionParams.is_plain`.

        Returns:
            Output (rows, key heads, groups, M, Dv) and log-sum-exp (rows, key heads, groups, M).
        """
        own_key, own_value = self.buffers.write(layer, self.rows, self.slot, key, value)
        rows, key_heads, groups, count, _ = query.shape
        # rows and key heads together are the entries of `attend`
        out, lse = attend(
            query.flatten(0, 1),
            own_key.flatten(0, 1)[:, None],
            own_value.flatten(0, 1)[:, None],
            params,
            mask=self._mask(params, plain, query.device, key_heads),
        )
        return out.view(rows, key_heads, groups, count, -1), lse.view(rows, key_heads, groups, count)

    def _mask(
        self, params: AttentionParams, plain: bool, device: torch.device, key_heads: int
    ) -> Mask | None:
        """The mask (rows * key heads, 1, M, slots), without padding; a padding slot sees itself, to see some key."""
        key = (None if plain else params.mask_key, device)
        if key not in self.masks:
            slots = torch.arange(self.end)
            new = slots[self.slot :, None]
            is_text = slots >= self.pads[:, :, None]
            allowed = params.visible(new, slots[None]) & (is_text | (slots == new))
            allowed = allowed[:, None].repeat_interleave(key_heads, 0).to(device)
            self.masks[key] = None if bool(allowed.all()) else Mask(allowed)
        return self.masks[key]
