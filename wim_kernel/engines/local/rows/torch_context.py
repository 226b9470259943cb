"""The attention of a forward pass over rows in PyTorch: to a prefix and to the rows' own tokens, merged exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import (
    PART_PAIRS,
    AttentionParams,
    Mask,
    Merge,
    attend,
    nested_parts,
)
from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.own_tokens import OwnTokens


class RowsContext:
    """The attention of a pass over rows of one or more batches on one prefix.

    Args:
        layers: keys and values of the prefix, by layer.
        own: the rows' own tokens, batch by batch.
        probe: measures attention of this pass, if given.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerStore],
        own: Sequence[OwnTokens],
        probe: PromptProbe | None = None,
    ) -> None:
        self.layers = layers
        self.own = own
        self.probe = probe
        self.positions = torch.cat([part.positions for part in own])
        self.counts = [len(part.lengths) for part in own]
        lengths = [length for part in own for length in part.lengths]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        is_sorted = order == list(range(len(lengths)))  # always so for a single batch
        self.order = None if is_sorted else torch.tensor(order)
        self.lengths = [lengths[row] for row in order]
        self.sorted_positions = self.positions if self.order is None else self.positions[self.order]
        self.parts = nested_parts(self.lengths)
        self.longest = int(self.positions.max()) + 1
        self.folded: Mask | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
    ) -> Tensor:
        """Attend to the visible prefix in the shared buffers and to the rows' own tokens; merge exactly."""
        if self.probe is not None:
            store = self.layers.get(layer)
            self.probe.observe(layer, query, key, None if store is None else store.keys, params)
        rows, heads, count, size = query.shape
        key_heads = key.shape[1]
        groups = heads // key_heads
        plain = params.is_plain(self.longest)
        query = query.reshape(rows, key_heads, groups, count, size)
        results = [
            part.attend(layer, q, k, v, params, plain)
            for part, q, k, v in zip(
                self.own, *(torch.split(item, self.counts) for item in (query, key, value)), strict=True
            )
        ]
        out, lse = (items[0] if len(items) == 1 else torch.cat(items) for items in zip(*results, strict=True))
        if self.order is not None:
            order = self.order.to(query.device)
            query, out, lse = query[order], out[order], lse[order]
        merge = Merge(out, lse)
        if plain:
            self._whole_prefix(layer, query, merge, params)
        else:
            self._windowed_prefix(layer, query, merge, params)
        if params.sinks is not None:
            merge.sink(params.sinks.view(1, key_heads, groups, 1))
        result = merge.out.to(query.dtype).reshape(rows, heads, count, -1).transpose(1, 2)
        return result if self.order is None else result[self.order.argsort().to(query.device)]

    def _whole_prefix(self, layer: int, query: Tensor, merge: Merge, params: AttentionParams) -> None:
        """Attend to the prefix for all rows at once, their queries folded into one axis: part by part, or masked."""
        if not self.parts:
            return
        store = self.layers[layer]
        rows, key_heads, groups, count, size = query.shape
        folded = query.transpose(0, 1).reshape(key_heads, 1, rows * groups * count, size)
        spans: list[tuple[int, slice, Mask | None]]
        if self._one_masked_pass_is_faster(groups * count, key_heads, query.device):
            spans = [(rows, slice(0, self.lengths[0]), self._folded_mask(groups * count))]
        else:
            spans = [(part.rows, slice(part.start, part.end), None) for part in self.parts]
        for seeing, positions, mask in spans:
            out, lse = attend(
                folded[:, :, : seeing * groups * count],
                store.keys[:, None, positions],
                store.values[:, None, positions],
                params,
                mask=mask,
            )
            merge.add(
                out.view(key_heads, seeing, groups, count, -1).transpose(0, 1),
                lse.view(key_heads, seeing, groups, count).transpose(0, 1),
                slice(0, seeing),
            )

    def _one_masked_pass_is_faster(self, queries: int, key_heads: int, device: torch.device) -> bool:
        """Whether a CPU computes one masked pass over the longest prefix faster than a pass for each part."""
        if device.type != "cpu" or len(self.parts) == 1:
            return False
        wasted = sum(self.lengths[0] - length for length in self.lengths) * queries * key_heads
        return wasted < PART_PAIRS * (len(self.parts) - 1)

    def _folded_mask(self, queries: int) -> Mask:
        """The mask (1, 1, rows * queries, longest) that shows each row's queries the row's prefix. Only on the CPU."""
        if self.folded is None:
            lengths = torch.tensor(self.lengths).repeat_interleave(queries)
            self.folded = Mask((torch.arange(self.lengths[0]) < lengths[:, None])[None, None])
        return self.folded

    def _windowed_prefix(self, layer: int, query: Tensor, merge: Merge, params: AttentionParams) -> None:
        """Attend row by row to the few positions of the prefix that the row's window still reaches."""
        if not self.parts:
            return
        store = self.layers[layer]
        for row, length in enumerate(self.lengths):
            first = max(length, int(self.sorted_positions[row, 0]))
            low = params.first_visible(first)
            if low >= length:
                continue
            mask = None
            if query.shape[3] > 1:
                visible = params.visible(self.sorted_positions[row][:, None], torch.arange(low, length)[None])
                mask = Mask(visible[None, None].to(query.device))
            out, lse = attend(
                query[row],
                store.keys[:, None, low:length],
                store.values[:, None, low:length],
                params,
                mask=mask,
            )
            merge.add(out[None], lse[None], slice(row, row + 1))


class JointContext:
    """The attention of a pass over rows on several prefixes: the rows of each prefix attend by themselves."""

    def __init__(self, contexts: Sequence[RowsContext]) -> None:
        self.contexts = contexts
        self.positions = torch.cat([context.positions for context in contexts])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
    ) -> Tensor:
        """See `ForwardContext.attend`."""
        counts = [len(context.lengths) for context in self.contexts]
        parts = zip(self.contexts, *(torch.split(item, counts) for item in (query, key, value)), strict=True)
        return torch.cat([context.attend(layer, q, k, v, params) for context, q, k, v in parts])
