"""Branches as batch rows beside a shared prefix, in plain PyTorch: attention part by part, merged exactly."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

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
from wim_kernel.engines.local.model.runner import ModelRunner, stream_of
from wim_kernel.engines.local.model.states import StateCache, States, joined, selected, split
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import StepOutput, left_padded


class TorchRows:
    """Branches as batch rows, sorted by falling prefix length so that each part of the prefix serves leading rows.

    Rows are left-padded, so that all rows write to the same slot of their own buffers at each step. Layers that keep
    states would take padding for text: with them, prompts of different lengths run one length after another, unpadded.

    Args:
        layers: keys and values of the prefix, by layer; all batches on one prefix share this mapping.
        runner: the model.
        lengths: number of prefix tokens that each row sees, in descending order.
        room: number of tokens that each row may add.
        states: the rows' states; None if no layer keeps any.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerStore],
        runner: ModelRunner,
        lengths: list[int],
        room: int,
        states: States | None = None,
    ) -> None:
        self.layers = layers
        self.runner = runner
        self.lengths = lengths
        self.room = room
        self.used = 0
        self.pads = [0] * len(lengths)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.states = states
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
        """See `BranchRows.prompt`."""
        rows = slice(start, start + len(ids))
        self.pads[rows], padded = left_padded(ids, width)
        self.used = width
        if self.states is not None:
            return self._prompt_by_length(ids, width, keep, start, probe)
        context = RowsContext([OwnTokens(self, rows, 0, width)], probe)
        return self.runner.forward(padded, context.positions.clamp(min=0), context, keep)

    def _prompt_by_length(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int,
        probe: PromptProbe | None,
    ) -> Tensor:
        """Run prompts without padding: a pass for each run of neighbours of one length. See `prompt` for the rest."""
        logits, row = [], 0
        for length, run in itertools.groupby(ids, key=len):
            some = list(run)
            rows, pad = slice(start + row, start + row + len(some)), width - length
            part = None if probe is None else probe.part(range(row, row + len(some)), pad)
            context = RowsContext([OwnTokens(self, rows, pad, length)], part)
            states = self._state_cache(rows)
            slots = (keep - pad).clamp(min=0)
            logits.append(self.runner.forward(torch.tensor(some), context.positions, context, slots, states))
            self._keep_states(rows, states)
            if probe is not None and part is not None:
                probe.take(part, row)
            row += len(some)
        return torch.cat(logits)

    def _state_cache(self, rows: slice) -> StateCache:
        layout = self.runner.state_layout
        assert layout is not None
        assert self.states is not None
        states = {name: state[rows] for name, state in self.states.items()}
        return StateCache(layout, max(self.lengths[rows]) + self.used, states)

    def _keep_states(self, rows: slice, cache: StateCache) -> None:
        """Store what a pass has left, unless it has written to the batch's own tensors."""
        count, states = len(self.lengths), dict(self.states or {})
        for name, new in cache.states.items():
            if name not in states:  # the rows are the prefix's first tokens
                states[name] = new.new_zeros(count, *new.shape[1:])
            if states[name][rows].data_ptr() != new.data_ptr():
                states[name][rows] = new
        self.states = states

    def step(self, tokens: list[int], *, ahead: bool = False) -> StepOutput:
        """See `BranchRows.step`; never runs ahead."""
        (output,) = self.step_together([(self, tokens)])
        self.advance()
        return output

    @property
    def batch_key(self) -> Hashable:
        """Equal for all batches on one model and one stream of the device, whatever their prefixes."""
        return id(self.runner), self._stream

    def step_together(self, steps: Sequence[tuple[TorchRows, list[int]]]) -> list[StepOutput]:
        """See `BranchRows.step_together`. Batches on one prefix are computed next to each other."""
        own = [OwnTokens(batch, slice(0, len(new)), batch.used, 1) for batch, new in steps]
        by_prefix = sorted(range(len(steps)), key=lambda index: id(steps[index][0].layers))
        groups = itertools.groupby(by_prefix, key=lambda index: id(steps[index][0].layers))
        joint = JointContext([RowsContext([own[index] for index in group]) for _, group in groups])
        tokens = torch.tensor([token for index in by_prefix for token in steps[index][1]])
        batches = [steps[index][0] for index in by_prefix]
        counts = [len(steps[index][1]) for index in by_prefix]
        states = _joint_states(batches)
        logits = self.runner.forward(tokens[:, None], joint.positions.clamp(min=0), joint, 1, states)[:, -1]
        if states is not None:
            for batch, own_states in zip(batches, split(states.states, counts), strict=True):
                batch.states = own_states
        outputs = dict(zip(by_prefix, map(StepOutput.of, torch.split(logits, counts)), strict=True))
        return [outputs[index] for index in range(len(steps))]

    def advance(self) -> None:
        """Count a step: the next one writes to the next slot."""
        self.used += 1

    @torch.inference_mode()
    def select(self, rows: list[int]) -> None:
        """Keep only ``rows``, ascending."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        self.pads = [self.pads[row] for row in rows]
        for layer, (keys, values) in self.own.items():
            index = torch.tensor(rows, dtype=torch.long, device=keys.device)
            self.own[layer] = keys.index_select(0, index), values.index_select(0, index)
        if self.states is not None:
            self.states = selected(self.states, rows)


def _joint_states(batches: Sequence[TorchRows]) -> StateCache | None:
    """The states of all rows of batches; of one batch alone, in its own tensors."""
    layout, parts = batches[0].runner.state_layout, [batch.states for batch in batches]
    if layout is None:
        return None
    states = [part for part in parts if part is not None]
    tokens = max(max(batch.lengths) + batch.used for batch in batches)
    return StateCache(layout, tokens, states[0] if len(states) == 1 else joined(states))


class OwnTokens:
    """Attention of rows of one batch to their own tokens, those after the prefix, in one forward pass.

    Args:
        batch: the batch.
        rows: the rows of the batch that run.
        slot: slot of the rows' own buffers to which the pass writes its first token.
        width: number of tokens that the pass adds to each row.
    """

    def __init__(self, batch: TorchRows, rows: slice, slot: int, width: int) -> None:
        self.batch = batch
        self.rows = rows
        self.slot = slot
        self.end = slot + width
        self.lengths = batch.lengths[rows]
        self.pads = torch.tensor(batch.pads[rows])[:, None]
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
        own_key, own_value = self._write(layer, key, value)
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

    def _write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        own = self.batch.own
        if layer not in own:
            shape = (len(self.batch.lengths), key.shape[1], self.batch.room)
            own[layer] = key.new_empty(*shape, key.shape[-1]), value.new_empty(*shape, value.shape[-1])
            if (
                self.batch.states is not None
            ):  # padding is never written there, and NaN counts even where it is masked
                for buffer in own[layer]:
                    buffer.zero_()
        keys, values = own[layer]
        keys[self.rows, :, self.slot : self.end] = key
        values[self.rows, :, self.slot : self.end] = value
        return keys[self.rows, :, : self.end], values[self.rows, :, : self.end]

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


class RowsContext:
    """The attention of a pass over rows of one or more batches on one prefix.

    Args:
        own: the rows' own tokens, batch by batch.
        probe: measures attention of this pass, if given.
    """

    def __init__(self, own: Sequence[OwnTokens], probe: PromptProbe | None = None) -> None:
        self.own = own
        self.probe = probe
        self.layers = own[0].batch.layers
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
