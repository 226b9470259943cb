"""Attention over a shared prefix and a branch's own tokens, as two Triton kernels.

The first cuts the visible prefix into runs and computes each run for all branches at once, so that keys and values are
read once whatever the number of branches and however far each of them sees. The second computes each branch's own
tokens, stores their keys and values, and merges everything exactly by log-sum-exps. (Flash-decoding; FlashAttention,
arXiv 2205.14135; Hydragen, arXiv 2402.05099.)

Everything that changes from step to step is read from device memory: addresses from a table, lengths and the slot to
write from a state. So a captured graph of a step serves every reading and every batch of its size.

Names of sizes: ``B`` rows (branches), ``H`` query heads, ``K`` key heads, ``M`` queries a row, ``D`` and ``Dv`` head
sizes of keys and values.
"""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,index,operator,arg-type"
from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wim_kernel.engines.local.attention import Terms

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - triton comes with every CUDA build of torch
    triton = None

LOG2E = math.log2(math.e)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NO_WINDOW = 2**30
ABSENT_ROW = 2**30
"""As a pad: a row that is not there. It sees itself alone and stores nothing."""


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA, and anywhere under Triton's interpreter."""
    return triton is not None and (device.type == "cuda" or interpreted())


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU, as tests ask with TRITON_INTERPRET=1."""
    return triton is not None and type(_prefix_part).__name__ == "InterpretedFunction"


COLUMNS = 6
"""Columns of a layer's row of the table, int64: addresses of the prefix's keys (capacity, K, D) and values (capacity, K,
Dv), of the own keys (own rows, room, K, D) and values; room; and one that keeps rows aligned."""


def table_row(keys: int, values: int, own_keys: int, own_values: int, room: int) -> list[int]:
    """A layer's row of the table, from addresses."""
    return [keys, values, own_keys, own_values, room, 0]


def pack_state(
    slot: int, base: int, lengths: Sequence[int], pads: Sequence[int], own: Sequence[int]
) -> list[int]:
    """What a step reads on the device about its rows, int32, [slot, base, B lengths, B pads, B own rows].

    Args:
        slot: where in their own buffers all rows write the first of this step's tokens.
        base: the first position of the prefix that is looked at.
        lengths: how much of the prefix each row sees.
        pads: the first slot that is each row's own text; slots before it are padding.
        own: which row of the own buffers is each row's.
    """
    return [slot, base, *lengths, *pads, *own]


if triton is not None:

    @triton.jit
    def _cap(scores, softcap):
        """``softcap * tanh(scores / softcap)``."""
        return softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)

    @triton.jit
    def _fold(highest, total, acc, scores, value):
        """One step of softmax on the way: ``scores`` (R, N) in base-2 units, minus infinity where nothing is seen."""
        new = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(highest - base)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        return new, total, acc

    @triton.jit
    def _merge(highest, total, acc, lse, found):
        """Merge in a part that is finished: its output (R, Dv) and its log-sum-exp in base 2."""
        new = tl.maximum(highest, lse)
        base = tl.where(new == float("-inf"), 0.0, new)
        mine, theirs = tl.exp2(highest - base), tl.exp2(lse - base)
        return new, total * mine + theirs, acc * mine[:, None] + found * theirs[:, None]

    @triton.jit
    def _tile(
        q, keys, values, key_heads, at, end, r_length, r_low, highest, total, acc, scale, softcap,
        SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
        BLOCK_N: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    ):  # fmt: skip
        """Fold keys ``at`` to ``at + BLOCK_N`` of the prefix in; unmasked where every row sees all of them."""
        n = at + tl.arange(0, BLOCK_N)
        d = tl.arange(0, BLOCK_D)
        dv = tl.arange(0, BLOCK_DV)
        key_at = keys + n.to(tl.int64)[None, :] * (key_heads * SIZE) + d[:, None]
        value_at = values + n.to(tl.int64)[:, None] * (key_heads * VALUE_SIZE) + dv[None, :]
        if MASKED:
            k = tl.load(key_at, mask=(n[None, :] < end) & (d[:, None] < SIZE), other=0.0)
        elif BLOCK_D == SIZE:
            k = tl.load(key_at)
        else:
            k = tl.load(key_at, mask=d[:, None] < SIZE, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_CAP:
            scores = _cap(scores, softcap)
        scores = scores * 1.4426950408889634
        if MASKED:
            seen = (n[None, :] < r_length[:, None]) & (n[None, :] < end)
            if HAS_WINDOW:
                seen = seen & (n[None, :] >= r_low[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            v = tl.load(value_at, mask=(n[:, None] < end) & (dv[None, :] < VALUE_SIZE), other=0.0)
        elif BLOCK_DV == VALUE_SIZE:
            v = tl.load(value_at)
        else:
            v = tl.load(value_at, mask=dv[None, :] < VALUE_SIZE, other=0.0)
        return _fold(highest, total, acc, scores, v)

    @triton.jit
    def _prefix_part(
        query, q_row, q_head, q_token, table, state, part, part_lse, rows, queries, scale, softcap, window,
        GROUPS: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_DV: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr,
        HAS_CAP: tl.constexpr,
    ):  # fmt: skip
        """One run of the prefix for a block of queries of one key head: its output and log-sum-exp (base 2)."""
        block, split, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        splits, key_heads = tl.num_programs(1), tl.num_programs(2)
        keys = tl.multiple_of(tl.load(table).to(tl.pointer_type(query.dtype.element_ty)), 16)
        values = tl.multiple_of(tl.load(table + 1).to(tl.pointer_type(query.dtype.element_ty)), 16)
        keys += head * SIZE
        values += head * VALUE_SIZE

        r = block * BLOCK_R + tl.arange(0, BLOCK_R)
        row = r // (queries * GROUPS)
        token = r // GROUPS % queries
        group = r % GROUPS
        real = row < rows
        length = tl.load(state + 2 + row, mask=real, other=0)
        pad = tl.load(state + 2 + rows + row, mask=real, other=0)
        low = tl.where(real, length - pad + tl.load(state) + token - window + 1, 2147483647)
        begin = tl.load(state + 1)
        if HAS_WINDOW:
            begin = tl.maximum(tl.min(low), begin)
        longest = tl.max(length)
        per = tl.cdiv(tl.cdiv(tl.maximum(longest - begin, 0), splits), BLOCK_N) * BLOCK_N
        begin += split * per
        end = tl.minimum(begin + per, longest)

        d = tl.arange(0, BLOCK_D)
        q_at = (
            query + row.to(tl.int64) * q_row + (head * GROUPS + group) * q_head + token.to(tl.int64) * q_token
        )
        q = tl.load(q_at[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < SIZE), other=0.0)
        highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_R], tl.float32)
        acc = tl.zeros([BLOCK_R, BLOCK_DV], tl.float32)
        plain = begin  # up to where no query of the block needs a mask
        if not HAS_WINDOW:
            shortest = tl.min(tl.where(real, length, 2147483647))
            plain = begin + tl.maximum(tl.minimum(end, shortest) - begin, 0) // BLOCK_N * BLOCK_N
            for at in range(begin, plain, BLOCK_N):
                highest, total, acc = _tile(
                    q, keys, values, key_heads, at, end, length, low, highest, total, acc, scale, softcap,
                    SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, False, HAS_WINDOW, HAS_CAP,
                )  # fmt: skip
        for at in range(plain, end, BLOCK_N):
            highest, total, acc = _tile(
                q, keys, values, key_heads, at, end, length, low, highest, total, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, True, HAS_WINDOW, HAS_CAP,
            )  # fmt: skip

        out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        lse = highest + tl.log2(total)  # minus infinity where nothing was seen
        at = (
            (split * rows + row).to(tl.int64) * key_heads * GROUPS + head * GROUPS + group
        ) * queries + token
        dv = tl.arange(0, BLOCK_DV)
        tl.store(
            part + at[:, None] * VALUE_SIZE + dv[None, :],
            out,
            mask=real[:, None] & (dv[None, :] < VALUE_SIZE),
        )
        tl.store(part_lse + at, lse, mask=real)

    @triton.jit
    def _new_tile(
        q, keys, k_token, values, v_token, own_keys, own_values, key_heads, storing, at, queries, token, slot, pad,
        window, highest, total, acc, scale, softcap,
        SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
        BLOCK_N: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    ):  # fmt: skip
        """Store and fold in this step's own tokens ``at`` to ``at + BLOCK_N``, causally."""
        n = at + tl.arange(0, BLOCK_N)
        d = tl.arange(0, BLOCK_D)
        dv = tl.arange(0, BLOCK_DV)
        k_mask = (n[None, :] < queries) & (d[:, None] < SIZE)
        v_mask = (n[:, None] < queries) & (dv[None, :] < VALUE_SIZE)
        k = tl.load(keys + n.to(tl.int64)[None, :] * k_token + d[:, None], mask=k_mask, other=0.0)
        v = tl.load(values + n.to(tl.int64)[:, None] * v_token + dv[None, :], mask=v_mask, other=0.0)
        if storing:
            to = (slot + n).to(tl.int64)
            tl.store(own_keys + to[None, :] * (key_heads * SIZE) + d[:, None], k, mask=k_mask)
            tl.store(own_values + to[:, None] * (key_heads * VALUE_SIZE) + dv[None, :], v, mask=v_mask)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_CAP:
            scores = _cap(scores, softcap)
        scores = scores * 1.4426950408889634
        if MASKED:
            seen = (n[None, :] <= token[:, None]) & (
                (slot + n[None, :] >= pad) | (n[None, :] == token[:, None])
            )
            if HAS_WINDOW:
                seen = seen & (token[:, None] - n[None, :] < window)
            scores = tl.where(seen, scores, float("-inf"))
        return _fold(highest, total, acc, scores, v)

    @triton.jit
    def _own_part(
        query, q_row, q_head, q_token, key, k_row, k_head, k_token, value, v_row, v_head, v_token,
        table, state, sinks, part, part_lse, outer, outer_lse, outer_queries, out, rows, queries, scale, softcap,
        window, GROUPS: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_DV: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
        HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_PAST: tl.constexpr,
        HAS_OUTER: tl.constexpr,
    ):  # fmt: skip
        """A row's own tokens, earlier ones and this step's, for one key head; then the prefix's runs, merged in."""
        block, row, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        key_heads = tl.num_programs(2)
        own_keys = tl.multiple_of(tl.load(table + 2).to(tl.pointer_type(query.dtype.element_ty)), 16)
        own_values = tl.multiple_of(tl.load(table + 3).to(tl.pointer_type(query.dtype.element_ty)), 16)
        slot = tl.load(state)
        pad = tl.load(state + 2 + rows + row)
        own = tl.load(state + 2 + 2 * rows + row) * tl.load(table + 4)
        own_keys += (own * key_heads + head) * SIZE
        own_values += (own * key_heads + head) * VALUE_SIZE

        r = block * BLOCK_R + tl.arange(0, BLOCK_R)
        token = r // GROUPS
        group = r % GROUPS
        real = token < queries
        d = tl.arange(0, BLOCK_D)
        dv = tl.arange(0, BLOCK_DV)
        row64 = row.to(tl.int64)
        q_at = query + row64 * q_row + (head * GROUPS + group) * q_head + token.to(tl.int64) * q_token
        q = tl.load(q_at[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < SIZE), other=0.0)
        highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_R], tl.float32)
        acc = tl.zeros([BLOCK_R, BLOCK_DV], tl.float32)

        if HAS_PAST:
            first = pad
            if HAS_WINDOW:
                first = tl.maximum(first, slot + tl.min(token) - window + 1)
            for at in range(first // BLOCK_N * BLOCK_N, slot, BLOCK_N):
                n = at + tl.arange(0, BLOCK_N)
                k = tl.load(
                    own_keys + n.to(tl.int64)[None, :] * (key_heads * SIZE) + d[:, None],
                    mask=(n[None, :] < slot) & (d[:, None] < SIZE), other=0.0,
                )  # fmt: skip
                v = tl.load(
                    own_values + n.to(tl.int64)[:, None] * (key_heads * VALUE_SIZE) + dv[None, :],
                    mask=(n[:, None] >= pad) & (n[:, None] < slot) & (dv[None, :] < VALUE_SIZE), other=0.0,
                )  # fmt: skip
                scores = tl.dot(q, k, input_precision="ieee") * scale
                if HAS_CAP:
                    scores = _cap(scores, softcap)
                seen = (n[None, :] >= pad) & (n[None, :] < slot)
                if HAS_WINDOW:
                    seen = seen & (slot + token[:, None] - n[None, :] < window)
                scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
                highest, total, acc = _fold(highest, total, acc, scores, v)

        storing = (block == tl.num_programs(0) - 1) & (
            pad < 1073741824
        )  # the last block comes past all new tokens
        last = tl.minimum((block * BLOCK_R + BLOCK_R - 1) // GROUPS, queries - 1)
        plain = 0  # up to where no query of the block needs a mask
        if not HAS_WINDOW:
            if slot >= pad:
                plain = block * BLOCK_R // GROUPS // BLOCK_N * BLOCK_N
        for at in range(0, plain, BLOCK_N):
            highest, total, acc = _new_tile(
                q, key + row64 * k_row + head * k_head, k_token, value + row64 * v_row + head * v_head, v_token,
                own_keys, own_values, key_heads, storing, at, queries, token, slot, pad, window,
                highest, total, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, False, HAS_WINDOW, HAS_CAP,
            )  # fmt: skip
        for at in range(plain, last + 1, BLOCK_N):
            highest, total, acc = _new_tile(
                q, key + row64 * k_row + head * k_head, k_token, value + row64 * v_row + head * v_head, v_token,
                own_keys, own_values, key_heads, storing, at, queries, token, slot, pad, window,
                highest, total, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, True, HAS_WINDOW, HAS_CAP,
            )  # fmt: skip

        at = (row64 * key_heads * GROUPS + head * GROUPS + group) * queries + token
        stride = tl.full([], 1, tl.int64) * rows * key_heads * GROUPS * queries
        for split in tl.static_range(SPLITS):
            lse = tl.load(part_lse + split * stride + at, mask=real, other=float("-inf"))
            found = tl.load(
                part + (split * stride + at)[:, None] * VALUE_SIZE + dv[None, :],
                mask=real[:, None] & (dv[None, :] < VALUE_SIZE), other=0.0,
            )  # fmt: skip
            highest, total, acc = _merge(highest, total, acc, lse, found)
        if HAS_OUTER:
            lse = tl.load(
                outer_lse + (head * GROUPS + group) * outer_queries + token, mask=real, other=float("-inf")
            )
            found = tl.load(
                outer + ((token.to(tl.int64) * key_heads + head) * GROUPS + group)[:, None] * VALUE_SIZE + dv[None, :],
                mask=real[:, None] & (dv[None, :] < VALUE_SIZE), other=0.0,
            )  # fmt: skip
            highest, total, acc = _merge(highest, total, acc, lse * 1.4426950408889634, found.to(tl.float32))
        if HAS_SINKS:
            sink = tl.load(sinks + head * GROUPS + group).to(tl.float32) * 1.4426950408889634
            new = tl.maximum(highest, sink)
            mine = tl.exp2(highest - new)
            acc = acc * mine[:, None]
            total = total * mine + tl.exp2(sink - new)
        found = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        to = (
            out
            + ((row64 * queries + token) * key_heads * GROUPS + head * GROUPS + group)[:, None] * VALUE_SIZE
        )
        tl.store(
            to + dv[None, :], found.to(out.dtype.element_ty), mask=real[:, None] & (dv[None, :] < VALUE_SIZE)
        )


@dataclass(frozen=True)
class Shape:
    """What the choice of block sizes depends on.

    Attributes:
        rows: branches.
        queries: of each branch.
        key_heads: how many.
        groups: query heads that share a key head.
        size: of the larger kind of head.
        itemsize: bytes of a number.
    """

    rows: int
    queries: int
    key_heads: int
    groups: int
    size: int
    itemsize: int


@dataclass(frozen=True)
class Blocks:
    """How a kernel is cut up: queries and keys of a block, warps, stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


def prefix_blocks(shape: Shape) -> Blocks:
    """Blocks of the prefix kernel, by what measured best on an H100; a block's accumulators must fit the registers."""
    queries = shape.rows * shape.queries * shape.groups
    if shape.itemsize == 4:  # no matrix units in full float32, so small blocks
        return Blocks(min(32, _power(queries)), 32 if shape.size <= 128 else 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, _power(queries)), 32, 4, 2)
    block = min(128, _power(queries))
    if block == 16:
        return Blocks(16, 128, 4, 3)
    return Blocks(block, 64, 8 if block == 128 else 4, 4 if shape.queries == 1 else 3)


def own_blocks(shape: Shape) -> Blocks:
    """Blocks of the kernel over own tokens."""
    queries = shape.queries * shape.groups
    if shape.itemsize == 4:
        return Blocks(min(32, _power(queries)), 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, _power(queries)), 32, 4, 2)
    block = min(128, _power(queries))
    return Blocks(block, 64, 8 if block == 128 else 4, 3)


def prefix_splits(shape: Shape, longest: int, multiprocessors: int) -> int:
    """Into how many runs to cut the prefix so that every multiprocessor has work once; 0 if there is no prefix."""
    if longest == 0:
        return 0
    blocks = prefix_blocks(shape)
    programs = triton.cdiv(shape.rows * shape.queries * shape.groups, blocks.queries) * shape.key_heads
    wanted = max(1, multiprocessors // programs)
    return min(32, wanted, triton.cdiv(longest, blocks.keys))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; a few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def splits(query: Tensor, key: Tensor, longest: int) -> int:
    """Into how many runs to cut ``longest`` tokens of prefix for queries (B, H, M, D) and key heads (B, K, ...)."""
    rows, heads, queries, size = query.shape
    key_heads = key.shape[1]
    shape = Shape(rows, queries, key_heads, heads // key_heads, size, query.element_size())
    return prefix_splits(shape, longest, multiprocessors(query.device))


def branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    table: Tensor,
    state: Tensor,
    splits: int,
    *,
    past: bool = True,
    outer: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of branches over the visible prefix and their own tokens; stores the new keys and values.

    Args:
        query: (B, H, M, D); any strides, the last of them 1.
        key: (B, K, M, D), the new tokens', likewise.
        value: (B, K, M, Dv), likewise.
        terms: scale, window and the like.
        table: the layer's row of the table, see `table_row`.
        state: see `pack_state`.
        splits: runs that the prefix is cut into; 0 if no row sees any of it.
        past: whether rows may have own tokens of earlier steps.
        outer: a part that was computed elsewhere, for one row: its output (1, H, M or more, Dv), stored token by token,
            and its log-sum-exp (1, H, M or more).

    Returns:
        (B, M, H, Dv), contiguous.
    """
    rows, heads, queries, size = query.shape
    key_heads, value_size = key.shape[1], value.shape[-1]
    groups = heads // key_heads
    shape = Shape(rows, queries, key_heads, groups, max(size, value_size), query.element_size())
    window = NO_WINDOW if terms.window is None else terms.window
    cap = 0.0 if terms.softcap is None else terms.softcap
    sizes = {
        "GROUPS": groups,
        "SIZE": size,
        "VALUE_SIZE": value_size,
        "BLOCK_D": _power(size),
        "BLOCK_DV": _power(value_size),
        "HAS_WINDOW": terms.window is not None,
        "HAS_CAP": terms.softcap is not None,
    }
    out = query.new_empty(rows, queries, heads, value_size)
    part = query.new_empty(max(splits, 1) * rows * heads * queries * value_size, dtype=torch.float32)
    part_lse = query.new_empty(max(splits, 1) * rows * heads * queries, dtype=torch.float32)
    with on_device(query.device):
        if splits:
            blocks = prefix_blocks(shape)
            grid = (triton.cdiv(rows * queries * groups, blocks.queries), splits, key_heads)
            _prefix_part[grid](
                query, *_strides(query), table, state, part, part_lse, rows, queries, terms.scale, cap, window,
                **sizes, BLOCK_R=blocks.queries, BLOCK_N=blocks.keys, num_warps=blocks.warps, num_stages=blocks.stages,
            )  # fmt: skip
        blocks = own_blocks(shape)
        grid = (triton.cdiv(queries * groups, blocks.queries), rows, key_heads)
        _own_part[grid](
            query, *_strides(query), key, *_strides(key), value, *_strides(value), table, state,
            query if terms.sinks is None else terms.sinks, part, part_lse, *(outer or (out, part_lse)),
            queries if outer is None else outer[1].shape[2], out, rows, queries, terms.scale, cap, window,
            **sizes, BLOCK_R=blocks.queries, BLOCK_N=blocks.keys, SPLITS=splits, HAS_SINKS=terms.sinks is not None,
            HAS_PAST=past, HAS_OUTER=outer is not None, num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
    return out


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    row, head, token, one = tensor.stride()
    if one != 1:
        raise ValueError("The last dimension must be contiguous.")
    return row, head, token


def on_device(device: torch.device) -> Any:
    """Launch on a device, if it is one of several."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _power(number: int) -> int:
    """The next power of two, 16 at least, as matrix units want it."""
    return max(16, 1 << (number - 1).bit_length())
