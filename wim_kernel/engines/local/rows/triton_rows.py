"""Branches as batch rows on a GPU, by the Triton kernels: prompts and decode steps, both replayed as CUDA graphs.

A step of a large model is a thousand launches, and launching them takes longer than running them. Captured as a CUDA
graph they are one launch. Since a graph writes the argmax tokens to its own input, the next step can be in flight
while the host still looks at the result of the one before.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.prompt_probe import PromptProbe
from wim_kernel.engines.local.attention.triton_launch import ABSENT, pack_state
from wim_kernel.engines.local.model.runner import ModelRunner, stream_of, to_device, upload
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.addresses import Addresses, address_table
from wim_kernel.engines.local.rows.base import StepOutput, left_padded
from wim_kernel.engines.local.rows.cuda_graphs import CapturedPasses
from wim_kernel.engines.local.rows.decode_step import DecodeStep, StepSize
from wim_kernel.engines.local.rows.prompt_pass import WIDTH_STEP, PromptSize, rounded
from wim_kernel.engines.local.rows.triton_context import TritonContext


@dataclass
class PendingStep:
    """A decode step in flight, or finished.

    Attributes:
        rows: row ids of the batch when the step was launched; some may have finished since.
        tokens: the token that the step appends to each of these rows.
        logits: (rows, vocabulary).
        argmax: token ids (rows,), in host memory; valid once ``ready`` has happened.
        ready: event after which ``argmax`` is valid; None if it is valid already.
        slot: the slot of the rows' own buffers to which the tokens are written.
    """

    rows: list[int]
    tokens: list[int]
    logits: Tensor
    argmax: Tensor
    ready: torch.cuda.Event | None
    slot: int

    def matches(self, slot: int, rows: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the step appends ``tokens`` at ``slot`` to ``rows``, which are among its rows."""
        appended = dict(zip(self.rows, self.tokens, strict=True))
        same = all(appended[row] == token for row, token in zip(rows, tokens, strict=True))
        return slot == self.slot and same

    def wait_for_argmax(self) -> list[int]:
        """Wait for the device; returns the argmax token of each row."""
        if self.ready is not None:
            self.ready.synchronize()
        return list(self.argmax.tolist())

    def for_rows(self, rows: Sequence[int]) -> StepOutput:
        """The output for those of the step's rows that have not finished."""
        indices, argmax = [self.rows.index(row) for row in rows], self.wait_for_argmax()
        logits = self.logits if len(indices) == len(self.rows) else self.logits[indices]
        return StepOutput(logits, [argmax[index] for index in indices])


class TritonRows:
    """Branches as batch rows, with attention by the Triton kernels.

    Rows are left-padded, so that all rows of a batch write to the same slot of their own buffers at each step. The
    buffers of a finished row stay allocated until the batch ends; the other rows address theirs by row id.

    Args:
        layers: keys and values of the prefix, by layer.
        runner: the model.
        passes: the model's captured passes.
        lengths: number of prefix tokens that each row sees.
        room: number of tokens that each row may add.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerStore],
        runner: ModelRunner,
        passes: CapturedPasses,
        lengths: list[int],
        room: int,
    ) -> None:
        self.runner = runner
        self.passes = passes
        self.lengths = lengths
        self.pads = [0] * len(lengths)
        self.rows = list(range(len(lengths)))
        self.room = self._room = room
        self.used = 0
        self.layers = sorted(layers)
        self._stores = [layers[layer] for layer in self.layers]  # a prefix that grows replaces its stores
        self._dtype = self._stores[0].keys.dtype
        self._own = [store.own_buffers(len(lengths), room + WIDTH_STEP - 1) for store in self._stores]
        self._addresses = Addresses(self._stores, self._own)
        self._batch_key = id(passes), tuple(self.layers), self._dtype, stream_of(runner.device)
        self._decode_step: DecodeStep | None = None
        self._key = object()  # identifies the batch in a decode step, without keeping it alive
        self._next_step: PendingStep | None = None

    sees_attention = True

    @torch.inference_mode()
    def prompt(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int = 0,
        probe: PromptProbe | None = None,
    ) -> Tensor:
        """See `BranchRows.prompt`. Prompts are padded further, so that batches of a similar size share a graph."""
        more = rounded(width) - width
        width, keep, self.room = width + more, keep + more, self._room + more
        probed = None if probe is None else probe.part(range(len(ids)), -more)
        rows = slice(start, start + len(ids))
        self.pads[rows], padded = left_padded(ids, width)
        self.used = width
        watched = () if probed is None else probed.layers
        size = PromptSize.of(self.lengths[rows], width, len(keep), watched)
        logits = self._replayed(size, rows, padded, keep, probed)
        if logits is None:
            logits = self._launched(size, rows, padded, keep, probed)
            if start == 0 and self.room > width:  # a batch that only measures takes no steps
                self.passes.refresh()  # some milliseconds of the host, while the device is busy
        if probe is not None and probed is not None:
            probe.take(probed, 0)
        return logits

    def _launched(
        self, size: PromptSize, rows: slice, ids: Tensor, keep: Tensor, probe: PromptProbe | None
    ) -> Tensor:
        """Run prompts launch by launch; returns logits (rows, keep, vocabulary)."""
        lengths, pads = self.lengths[rows], self.pads[rows]
        before = torch.tensor(lengths)[:, None] - torch.tensor(pads)[:, None]
        positions = (before + torch.arange(ids.shape[1])[None]).clamp(min=0)
        state = upload(pack_state(0, lengths, pads, [0] * len(ids)), torch.int32, self.runner.device)
        table = to_device(address_table([self._addresses], [self.rows[rows]], len(ids)), self.runner.device)
        context = TritonContext(table, self.layers, state, size.longest, False, self._dtype)
        if probe is not None:
            context = replace(context, probe=probe, keys=[store.keys for store in self._stores])
        logits = self.runner.forward(ids, positions, context, keep)
        self.passes.launched(size, self.layers, self._dtype, logits)
        return logits

    def _replayed(
        self, size: PromptSize, rows: slice, ids: Tensor, keep: Tensor, probe: PromptProbe | None
    ) -> Tensor | None:
        """The same by a captured pass; None if there is none, or if the model has changed since its capture."""
        captured = self.passes.prompt(size, self.layers, self._dtype)
        if captured is None:
            return None
        table = address_table([self._addresses], [self.rows[rows]], len(ids))
        state = pack_state(0, self.lengths[rows], self.pads[rows], [0] * len(ids))
        try:
            logits = captured.run(table, state, ids, keep)
        except torch.OutOfMemoryError:
            self.passes.drop_prompts()
            return None
        if not self.passes.refresh():
            return None
        for layer, (query, key, params) in captured.watched.seen.items():
            assert probe is not None, "layers are watched for a probe"
            probe.observe(layer, query, key, self._stores[self.layers.index(layer)].keys, params)
        return logits

    @torch.inference_mode()
    def step(self, tokens: list[int], *, ahead: bool = False) -> StepOutput:
        """See `BranchRows.step`. With ``ahead``, launches the next step, on the argmax tokens, before it returns."""
        (output,) = self.step_together([(self, tokens)], ahead=ahead)
        self.advance()
        return output

    @property
    def batch_key(self) -> Hashable:
        """Equal for batches of one model on the same stream of the device, whatever prefix each of them is on."""
        return self._batch_key

    @torch.inference_mode()
    def step_together(
        self, steps: Sequence[tuple[TritonRows, list[int]]], *, ahead: bool = False
    ) -> list[StepOutput]:
        """See `BranchRows.step_together`. A batch whose step is in flight already, on the same tokens, takes that."""
        pending: dict[int, PendingStep] = {}
        for index, (batch, tokens) in enumerate(steps):
            in_flight, batch._next_step = batch._next_step, None
            if in_flight is not None and in_flight.matches(batch.used, batch.rows, tokens):
                pending[index] = in_flight
        # batches on one prefix next to each other, and in the same order in every step, whoever leads it
        order = sorted(range(len(steps)), key=lambda index: steps[index][0].place)
        rest = [index for index in order if index not in pending]
        if rest:
            pending.update(zip(rest, _launch([steps[index] for index in rest]), strict=True))
        batches = [steps[index][0] for index in order]
        if ahead and len(rest) in (0, len(steps)) and _can_run_ahead(batches):
            for index, step in zip(order, _run_ahead(batches), strict=False):
                step.tokens = pending[index].wait_for_argmax()
                steps[index][0]._next_step = step
        return [pending[index].for_rows(batch.rows) for index, (batch, _) in enumerate(steps)]

    def advance(self) -> None:
        """Count a step: the next one writes to the next slot."""
        self.used += 1

    def select(self, rows: list[int]) -> None:
        """Keep only ``rows``, ascending."""
        self.lengths, self.pads, self.rows = (
            [items[row] for row in rows] for items in (self.lengths, self.pads, self.rows)
        )

    @property
    def prefix_id(self) -> int:
        """Equal for batches on the same buffers of a prefix."""
        return id(self._stores[0])

    @property
    def place(self) -> tuple[int, int]:
        """The order of batches in a joint step."""
        return self.prefix_id, id(self._key)

    @property
    def _members(self) -> Hashable:
        return self._key, tuple(self.rows)


def _can_run_ahead(batches: Sequence[TritonRows]) -> bool:
    """Whether one decode step is still loaded for just these batches, and their rows have room for another token."""
    step = batches[0]._decode_step
    if step is None or not all(batch._decode_step is step for batch in batches):
        return False
    loaded = step.loaded_for == tuple(batch._members for batch in batches) and batches[0].passes.keeps(step)
    return loaded and all(batch.used + 1 < batch.room for batch in batches)


def _run_ahead(batches: Sequence[TritonRows]) -> list[PendingStep]:
    """Launch the next step on the argmax tokens of the last one, which are in device memory only as yet.

    Returns:
        A pending step for each batch, or nothing if memory is short.
    """
    step = batches[0]._decode_step
    assert step is not None
    try:
        return _run(step, [(batch, []) for batch in batches], ahead=1)
    except torch.OutOfMemoryError:
        step.loaded_for = None
        return []


def _launch(steps: Sequence[tuple[TritonRows, list[int]]]) -> list[PendingStep]:
    """Launch a step of batches, all their rows in one pass; batches on one prefix are next to each other."""
    batches = [batch for batch, _ in steps]
    first, blocks = batches[0], _blocks(batches)
    size = StepSize.of([rows for _, rows in blocks])
    decode_step = first.passes.decode_step(size, first.layers, first._dtype)
    absent = size.rows - sum(len(batch.rows) for batch in batches)
    several = (
        [*(batch for batch, _ in blocks), *[0] * (size.prefixes - len(blocks))] if len(blocks) > 1 else []
    )
    ends = itertools.accumulate((rows for _, rows in blocks), initial=0)
    bounds = [number for start, (_, rows) in zip(ends, blocks, strict=False) for number in (start, rows)]

    def table() -> Tensor:
        rows = [batch.rows for batch in batches]
        return address_table([batch._addresses for batch in batches], rows, size.rows, several)

    state = pack_state(
        0,
        [*(length for batch in batches for length in batch.lengths), *[0] * absent],
        [*(pad for batch in batches for pad in batch.pads), *[ABSENT] * absent],
        [*(batch.used for batch in batches for _ in batch.rows), *[0] * absent],
    )
    tokens = [*(token for _, new in steps for token in new), *[0] * absent]
    padding = [0] * (2 * len(several) - len(bounds))
    numbers = [*state, *tokens, *(bounds if several else ()), *padding]
    decode_step.load(tuple(batch._members for batch in batches), table, numbers)
    for batch in batches:
        batch._decode_step = decode_step
    return _run(decode_step, steps)


def _blocks(batches: Sequence[TritonRows]) -> list[tuple[int, int]]:
    """For each prefix, the first of its batches and the number of rows on it."""
    groups = itertools.groupby(range(len(batches)), lambda index: batches[index].prefix_id)
    return [
        (members[0], sum(len(batches[index].rows) for index in members))
        for members in (list(group) for _, group in groups)
    ]


def _run(
    decode_step: DecodeStep, steps: Sequence[tuple[TritonRows, list[int]]], ahead: int = 0
) -> list[PendingStep]:
    """Launch the next run of a loaded decode step, so many steps ahead of what its batches have counted.

    Returns:
        A pending step for each of the batches that it is loaded for.
    """
    counts = [len(batch.rows) for batch, _ in steps]
    logits = decode_step.run()[: sum(counts)].clone()
    found, ready = decode_step.tokens[: sum(counts)], None
    argmax = torch.empty(len(found), dtype=found.dtype, device="cpu", pin_memory=found.is_cuda)
    argmax.copy_(found, non_blocking=True)
    if found.is_cuda:
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(found.device))
    parts = zip(steps, torch.split(logits, counts), torch.split(argmax, counts), strict=True)
    return [
        PendingStep(list(batch.rows), tokens, some, ids, ready, batch.used + ahead)
        for (batch, tokens), some, ids in parts
    ]
