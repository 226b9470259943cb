"""Branches as batch rows beside a shared prefix, in plain PyTorch: attention part by part, merged exactly."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import (
    PART_PAIRS,
    Mask,
    Merge,
    Terms,
    attend,
    in_window,
    nested_parts,
)
from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.model.runner import ModelRunner, stream_of
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import Next


class BranchBatch:
    """Branches as batch rows, sorted by falling prefix length so that each part of the prefix serves leading rows.

    Rows are left-padded: all rows write the same slot of their own buffers at each step.

    Args:
        layers: the prefix's keys and values, by layer; batches on one prefix share this mapping.
        runner: the model.
        lengths: how many tokens of the prefix each row sees, falling.
        room: tokens that a row may add.
    """

    def __init__(
        self, layers: Mapping[int, LayerStore], runner: ModelRunner, lengths: list[int], room: int
    ) -> None:
        self.layers = layers
        self.runner = runner
        self.lengths = lengths
        self.room = room
        self.used = 0
        self.pads = [0] * len(lengths)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self._stream = stream_of(runner.device)

    sees_attention = True

    def prompt(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int = 0,
        probe: PromptProbe | None = None,
    ) -> Tensor:
        """Run prompts of rows ``start`` on, left-padded to ``width``; logits at slots ``keep``: (rows, keep, vocab)."""
        rows = slice(start, start + len(ids))
        self.pads[rows] = [width - len(row) for row in ids]
        self.used = width
        padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids])
        step = BranchStep([OwnTokens(self, rows, 0, width)], probe)
        return self.runner.forward(padded, step.positions.clamp(min=0), step, keep)

    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append one token to every row; what may come next."""
        (found,) = self.step_together([(self, tokens)])
        self.advance()
        return found

    @property
    def batch_key(self) -> Hashable:
        """All batches on one model, whatever they read, in order on one stream of the device."""
        return id(self.runner), self._stream

    def step_together(self, steps: Sequence[tuple[BranchBatch, list[int]]]) -> list[Next]:
        """A step of each of several batches in one pass. It counts once they `advance`."""
        parts = [OwnTokens(batch, slice(0, len(new)), batch.used, 1) for batch, new in steps]
        places = sorted(range(len(steps)), key=lambda place: id(steps[place][0].layers))
        groups = itertools.groupby(places, key=lambda place: id(steps[place][0].layers))
        joint = JointStep([BranchStep([parts[place] for place in group]) for _, group in groups])
        tokens = torch.tensor([token for place in places for token in steps[place][1]])
        logits = self.runner.forward(tokens[:, None], joint.positions.clamp(min=0), joint, keep=1)[:, -1]
        found = zip(places, torch.split(logits, [len(steps[place][1]) for place in places]), strict=True)
        return [Next.of(rows) for _, rows in sorted(found, key=lambda item: item[0])]

    def advance(self) -> None:
        """A step is over: the next one writes behind it."""
        self.used += 1

    @torch.inference_mode()
    def select(self, rows: list[int]) -> None:
        """Let all but ``rows`` (ascending) leave the batch."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        self.pads = [self.pads[row] for row in rows]
        for layer, (keys, values) in self.own.items():
            index = torch.tensor(rows, dtype=torch.long, device=keys.device)
            self.own[layer] = keys.index_select(0, index), values.index_select(0, index)


class OwnTokens:
    """What rows of one batch say themselves, in a step of ``width`` slots from ``slot`` on."""

    def __init__(self, batch: BranchBatch, rows: slice, slot: int, width: int) -> None:
        self.batch = batch
        self.rows = rows
        self.slot = slot
        self.end = slot + width
        self.lengths = batch.lengths[rows]
        self.pads = torch.tensor(batch.pads[rows])[:, None]
        self.positions = torch.tensor(self.lengths)[:, None] - self.pads + torch.arange(slot, self.end)[None]
        self.masks: dict[tuple[int | None, torch.device], Mask | None] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values and attend to the rows' own tokens.

        Args:
            layer: the layer's index.
            query: (rows, key heads, groups, M, D).
            key: (rows, key heads, M, D).
            value: (rows, key heads, M, Dv).
            terms: scale and softcap.
            window: the layer's, if it does not reach over everything.

        Returns:
            Output (rows, key heads, groups, M, Dv) and log-sum-exp (rows, key heads, groups, M).
        """
        own_key, own_value = self._write(layer, key, value)
        rows, key_heads, groups, count, _ = query.shape
        # rows and key heads are entries alike
        out, lse = attend(
            query.flatten(0, 1),
            own_key.flatten(0, 1)[:, None],
            own_value.flatten(0, 1)[:, None],
            terms,
            mask=self._mask(window, query.device, key_heads),
        )
        return out.view(rows, key_heads, groups, count, -1), lse.view(rows, key_heads, groups, count)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        own = self.batch.own
        if layer not in own:
            shape = (len(self.batch.lengths), key.shape[1], self.batch.room)
            own[layer] = key.new_empty(*shape, key.shape[-1]), value.new_empty(*shape, value.shape[-1])
        keys, values = own[layer]
        keys[self.rows, :, self.slot : self.end] = key
        values[self.rows, :, self.slot : self.end] = value
        return keys[self.rows, :, : self.end], values[self.rows, :, : self.end]

    def _mask(self, window: int | None, device: torch.device, key_heads: int) -> Mask | None:
        """(rows * key heads, 1, M, slots): causal, past the padding; a padding slot sees itself, not nothing."""
        key = (window, device)
        if key not in self.masks:
            slots = torch.arange(self.end)
            mine = slots[self.slot :, None]
            allowed = in_window(mine, slots[None], window) & (
                (slots >= self.pads[:, :, None]) | (slots == mine)
            )
            allowed = allowed[:, None].repeat_interleave(key_heads, 0).to(device)
            self.masks[key] = None if bool(allowed.all()) else Mask(allowed)
        return self.masks[key]


class JointStep:
    """What attention needs while rows on several prefixes run: each prefix's attend by themselves."""

    def __init__(self, steps: Sequence[BranchStep]) -> None:
        self.steps = steps
        self.positions = torch.cat([step.positions for step in steps])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention of one layer; see `BranchStep.attend`."""
        counts = [len(step.lengths) for step in self.steps]
        parts = zip(self.steps, *(torch.split(item, counts) for item in (query, key, value)), strict=True)
        return torch.cat([step.attend(layer, q, k, v, terms) for step, q, k, v in parts])


class BranchStep:
    """What attention needs while rows of one or more batches on one prefix run."""

    def __init__(self, own: Sequence[OwnTokens], probe: PromptProbe | None = None) -> None:
        self.own = own
        self.probe = probe
        self.layers = own[0].batch.layers
        self.positions = torch.cat([part.positions for part in own])
        self.counts = [len(part.lengths) for part in own]
        lengths = [length for part in own for length in part.lengths]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        in_order = order == list(range(len(lengths)))  # as a batch alone is
        self.order = None if in_order else torch.tensor(order)
        self.lengths = [lengths[row] for row in order]
        self.sorted_positions = self.positions if self.order is None else self.positions[self.order]
        self.parts = nested_parts(self.lengths)
        self.longest = int(self.positions.max()) + 1
        self.folded: Mask | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attend to the visible prefix, where it lies, and to the rows' own tokens; merge exactly."""
        if self.probe is not None:
            store = self.layers.get(layer)
            self.probe.observe(layer, query, key, None if store is None else store.keys, terms)
        rows, heads, count, size = query.shape
        key_heads = key.shape[1]
        groups = heads // key_heads
        window = terms.window if terms.window is not None and terms.window < self.longest else None
        query = query.reshape(rows, key_heads, groups, count, size)
        found = [
            part.attend(layer, q, k, v, terms, window)
            for part, q, k, v in zip(
                self.own, *(torch.split(item, self.counts) for item in (query, key, value)), strict=True
            )
        ]
        out, lse = (items[0] if len(items) == 1 else torch.cat(items) for items in zip(*found, strict=True))
        if self.order is not None:
            order = self.order.to(query.device)
            query, out, lse = query[order], out[order], lse[order]
        merge = Merge(out, lse)
        if window is None:
            self._whole_prefix(layer, query, merge, terms)
        else:
            self._windowed_prefix(layer, query, merge, terms, window)
        if terms.sinks is not None:
            merge.sink(terms.sinks.view(1, key_heads, groups, 1))
        result = merge.out.to(query.dtype).reshape(rows, heads, count, -1).transpose(1, 2)
        return result if self.order is None else result[self.order.argsort().to(query.device)]

    def _whole_prefix(self, layer: int, query: Tensor, merge: Merge, terms: Terms) -> None:
        """The prefix for all rows that see it, queries folded into one axis: part by part, or in one piece."""
        if not self.parts:
            return
        store = self.layers[layer]
        rows, key_heads, groups, count, size = query.shape
        folded = query.transpose(0, 1).reshape(key_heads, 1, rows * groups * count, size)
        pieces: list[tuple[int, slice, Mask | None]]
        if self._in_one_piece(groups * count, key_heads, query.device):
            pieces = [(rows, slice(0, self.lengths[0]), self._folded_mask(groups * count))]
        else:
            pieces = [(part.rows, slice(part.start, part.end), None) for part in self.parts]
        for seeing, positions, mask in pieces:
            out, lse = attend(
                folded[:, :, : seeing * groups * count],
                store.keys[:, None, positions],
                store.values[:, None, positions],
                terms,
                mask=mask,
            )
            merge.add(
                out.view(key_heads, seeing, groups, count, -1).transpose(0, 1),
                lse.view(key_heads, seeing, groups, count).transpose(0, 1),
                slice(0, seeing),
            )

    def _in_one_piece(self, queries: int, key_heads: int, device: torch.device) -> bool:
        """Whether a CPU is done sooner over the longest prefix at once, masked, than part by part."""
        if device.type != "cpu" or len(self.parts) == 1:
            return False
        wasted = sum(self.lengths[0] - length for length in self.lengths) * queries * key_heads
        return wasted < PART_PAIRS * (len(self.parts) - 1)

    def _folded_mask(self, queries: int) -> Mask:
        """(1, 1, rows * queries, longest): each row's queries see the row's prefix. Only on the CPU."""
        if self.folded is None:
            lengths = torch.tensor(self.lengths).repeat_interleave(queries)
            self.folded = Mask((torch.arange(self.lengths[0]) < lengths[:, None])[None, None])
        return self.folded

    def _windowed_prefix(self, layer: int, query: Tensor, merge: Merge, terms: Terms, window: int) -> None:
        """Row by row over the few positions that its window still reaches."""
        if not self.parts:
            return
        store = self.layers[layer]
        for row, length in enumerate(self.lengths):
            first = max(length, int(self.sorted_positions[row, 0]))
            low = max(0, first - window + 1)
            if low >= length:
                continue
            mask = None
            if query.shape[3] > 1:
                reach = torch.arange(low, length)
                seen = in_window(self.sorted_positions[row][:, None], reach[None], window)
                mask = Mask(seen[None, None].to(query.device))
            out, lse = attend(
                query[row],
                store.keys[:, None, low:length],
                store.values[:, None, low:length],
                terms,
                mask=mask,
            )
            merge.add(out[None], lse[None], slice(row, row + 1))
