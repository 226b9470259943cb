"""Branches as batch rows beside a shared prefix, in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.model.runner import ModelRunner, stream_of
from wim_kernel.engines.local.model.states import StateCache, States, joined, selected, split
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.base import StepOutput, left_padded
from wim_kernel.engines.local.rows.own_tokens import OwnBuffers, OwnTokens
from wim_kernel.engines.local.rows.torch_context import JointContext, RowsContext

WIDEST = 4
"""Most logits that a pass over prompts padded on the right may return, as a multiple of those that are needed."""


class TorchRows:
    """Branches as batch rows, sorted by falling prefix length so that each part of the prefix serves leading rows.

    Rows are left-padded, so that all rows write to the same slot of their own buffers at each step. Layers that keep
    states would take padding for text: with them, prompts that no step follows are padded on the right, where it
    changes nothing that is used, and others run one length after another, unpadded.

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
        self.used = 0
        self.pads = [0] * len(lengths)
        self.own = OwnBuffers(len(lengths), room, zeroed=states is not None)
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
        if self.states is not None and width == self.own.room:
            return self._prompt_padded_right(ids, width, keep, start, probe)
        if self.states is not None:
            return self._prompt_by_length(ids, width, keep, start, probe)
        context = RowsContext(self.layers, [self._own_tokens(rows, 0, width)], probe)
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
            context = RowsContext(self.layers, [self._own_tokens(rows, pad, length)], part)
            states = self._state_cache(rows)
            slots = (keep - pad).clamp(min=0)
            logits.append(self.runner.forward(torch.tensor(some), context.positions, context, slots, states))
            self._keep_states(rows, states)
            if probe is not None and part is not None:
                probe.take(part, row)
            row += len(some)
        return torch.cat(logits)

    def _prompt_padded_right(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int,
        probe: PromptProbe | None,
    ) -> Tensor:
        """Run prompts in one pass, after which the rows' states are of no use. See `prompt` for the arguments.

        Rows of very different lengths would need logits of too many slots: they run in two passes, or more.
        """
        rows, most = slice(start, start + len(ids)), max(map(len, ids))
        pads = torch.tensor([width - len(row) for row in ids])
        slots, places = torch.unique((keep[None] - pads[:, None]).clamp(min=0), return_inverse=True)
        if len(slots) > WIDEST * len(keep):
            half, halves = len(ids) // 2, []  # rows are sorted by length
            for part in (range(half), range(half, len(ids))):
                own = None if probe is None else probe.part(part, 0)
                some = ids[part.start : part.stop]
                halves.append(self._prompt_padded_right(some, width, keep, start + part.start, own))
                if probe is not None and own is not None:
                    probe.take(own, part.start)
            return torch.cat(halves)
        self.pads[rows] = [0] * len(ids)
        moved = None if probe is None else probe.aligned_left()
        context = RowsContext(self.layers, [self._own_tokens(rows, 0, most)], moved)
        padded = torch.tensor([list(row) + [0] * (most - len(row)) for row in ids])
        ends = torch.tensor([at + len(row) for at, row in zip(self.lengths[rows], ids, strict=True)])
        # padding, too, has to stay within the model's window
        positions = context.positions.clamp(max=ends[:, None] - 1)
        logits = self.runner.forward(padded, positions, context, slots, self._state_cache(rows))
        if probe is not None and moved is not None:
            probe.take(moved, 0)
        return logits[torch.arange(len(ids))[:, None], places.to(logits.device)]

    def _own_tokens(self, rows: slice, slot: int, width: int) -> OwnTokens:
        return OwnTokens(self.own, rows, self.lengths[rows], self.pads[rows], slot, width)

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

    def step_together(
        self, steps: Sequence[tuple[TorchRows, list[int]]], *, ahead: bool = False
    ) -> list[StepOutput]:
        """See `BranchRows.step_together`; never runs ahead. Batches on one prefix are computed next to each other."""
        own = [batch._own_tokens(slice(0, len(new)), batch.used, 1) for batch, new in steps]
        layers = [batch.layers for batch, _ in steps]
        by_prefix = sorted(range(len(steps)), key=lambda index: id(layers[index]))
        groups = [list(group) for _, group in itertools.groupby(by_prefix, lambda index: id(layers[index]))]
        joint = JointContext([RowsContext(layers[group[0]], [own[i] for i in group]) for group in groups])
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
        self.own.select(rows)
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
