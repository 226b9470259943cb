"""Cases for the kernels over a shared prefix, and attention written out in float64 to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.attention.triton_launch import (
    branch_attention,
    pack_state,
    prefix_splits,
    table_row,
)


@dataclass(frozen=True)
class Case:
    """Rows of a batch: what they see, where they write, and how their layer attends.

    Attributes:
        lengths: of the prefix that each row sees.
        queries: new tokens of each row.
        heads: of queries, and of keys.
        size: of a head; and of a value's, if it is another.
        slot: where the rows' new tokens go.
        slots: where each row's go, if they are not all at one.
        pads: slots of padding of each row; none by default.
        splits: runs the prefix is cut into; by default as many as the device wants.
    """

    lengths: tuple[int, ...]
    queries: int = 1
    heads: tuple[int, int] = (4, 2)
    size: int = 16
    value_size: int | None = None
    slot: int = 0
    slots: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    splits: int | None = None


def error(case: Case, device: torch.device, dtype: torch.dtype, seed: int = 0) -> float:
    """How far the kernels are from attention written out, relative to it.

    Checks what they stored, and poisons what they must not read.
    """
    count = len(case.lengths)
    case = replace(case, pads=case.pads or (0,) * count, slots=case.slots or (case.slot,) * count)
    generator = torch.Generator().manual_seed(seed)
    (heads, key_heads), size = case.heads, case.size
    rows, value_size = len(case.lengths), case.value_size or size
    own_rows = [rows - row for row in range(rows)]  # not in order, and one row belongs to nobody
    capacity, room = max(case.lengths) + 3, max(case.slots) + case.queries + 2

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    query = some(rows, case.queries, heads, size).transpose(1, 2)
    key = some(rows, case.queries, key_heads, size).transpose(1, 2)
    value = some(rows, case.queries, key_heads, value_size).transpose(1, 2)
    keys, values = some(capacity, key_heads, size), some(capacity, key_heads, value_size)
    keys[max(case.lengths) :] = values[max(case.lengths) :] = torch.nan
    own_keys, own_values = some(rows + 1, room, key_heads, size), some(rows + 1, room, key_heads, value_size)
    for buffer in (own_keys, own_values):
        for row, (pad, slot) in enumerate(zip(case.pads, case.slots, strict=True)):
            buffer[own_rows[row], slot:] = torch.nan
            buffer[own_rows[row], :pad] = torch.nan
    sinks = some(heads) if case.sinks else None
    params = AttentionParams(size**-0.5, case.window, case.softcap, sinks)
    mine = ([buffer[row] for row in own_rows] for buffer in (own_keys, own_values))
    table = torch.tensor(table_row(keys, values, *mine), device=device)
    numbers = pack_state(0, case.lengths, case.pads, case.slots)
    state = torch.tensor(numbers, dtype=torch.int32, device=device)
    splits = prefix_splits(query, key, max(case.lengths)) if case.splits is None else case.splits
    out = branch_attention(query, key, value, params, table, state, splits, past=max(case.slots) > 0)

    assert torch.isfinite(out).all()
    found, wanted = [], []
    for row, (length, pad, slot) in enumerate(zip(case.lengths, case.pads, case.slots, strict=True)):
        new = slice(slot, slot + case.queries)
        assert torch.equal(own_keys[own_rows[row], new], key[row].transpose(0, 1))
        assert torch.equal(own_values[own_rows[row], new], value[row].transpose(0, 1))
        assert own_keys[own_rows[row], slot + case.queries :].isnan().all()
        own = slice(pad, max(pad, slot))
        wanted.append(
            _written_out(
                query[row],
                torch.cat([keys[:length], own_keys[own_rows[row], own], key[row].transpose(0, 1)]),
                torch.cat([values[:length], own_values[own_rows[row], own], value[row].transpose(0, 1)]),
                _positions(case, row),
                params,
            )
        )
        found.append(out[row, max(0, pad - slot) :].double())
    return float((torch.cat(found) - torch.cat(wanted)).norm() / torch.cat(wanted).norm())


def _positions(case: Case, row: int) -> Tensor:
    """Positions of all keys that the row may see, -1 for the padding among its new tokens."""
    length, pad, slot = case.lengths[row], case.pads[row], case.slots[row]
    past = length + torch.arange(max(0, slot - pad))
    new = length + torch.arange(slot, slot + case.queries) - pad
    new[: max(0, pad - slot)] = -1
    return torch.cat([torch.arange(length), past, new])


def _written_out(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, params: AttentionParams
) -> Tensor:
    """Plain attention of the row's own text in float64: (M, H, Dv)."""
    positions = positions.to(query.device)
    asking = positions[-query.shape[1] :]
    query, asking = query[:, asking >= 0].double(), asking[asking >= 0]
    groups = query.shape[0] // keys.shape[1]
    keys, values = (item.double().transpose(0, 1).repeat_interleave(groups, 0) for item in (keys, values))
    scores = query @ keys.transpose(1, 2) * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    distance = asking[:, None] - positions[None]
    seen = (distance >= 0) & (positions >= 0) & (distance < (params.window or 2**30))
    scores = scores.masked_fill(~seen, -torch.inf)
    if params.sinks is not None:
        sinks = params.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        return (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ values).transpose(0, 1)
    return (scores.softmax(-1) @ values).transpose(0, 1)


def falling(longest: int, rows: int) -> tuple[int, ...]:
    """Lengths from ``longest`` down, unevenly."""
    return tuple(sorted(((longest - 37 * row * row) % (longest + 1) for row in range(rows)), reverse=True))


TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def check(case: Case, device: str, dtypes: Sequence[torch.dtype]) -> None:
    """The kernels give what attention written out gives."""
    for dtype in dtypes:
        found = error(case, torch.device(device), dtype)
        assert found < TOLERANCE[dtype], (dtype, found)
