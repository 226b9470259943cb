"""Attention over a shared prefix and a branch's own tokens, as Triton kernels.

`prefix_part` cuts the visible prefix into runs and computes each run for all rows at once, so that the prefix's keys
and values are read once, whatever the number of rows and however much of the prefix each row sees. `own_part` computes
each row's own tokens, stores their keys and values, and merges all parts exactly by their log-sum-exps. `merged` only
merges: it is for queries whose own tokens cuDNN has computed. (Flash-decoding; FlashAttention, arXiv 2205.14135;
Hydragen, arXiv 2402.05099.)

The kernels read everything that changes from step to step from device memory: addresses from a table, lengths and slots
from a state (see `wim_kernel.engines.local.attention.triton_launch`). So one captured CUDA graph of a step serves every
prefix and every batch of its size, and rows of different callers, each at a slot of its own, can run in one step.

Sizes: ``B`` rows (branches), ``H`` query heads, ``K`` key heads, ``M`` queries per row, ``D`` and ``Dv`` head sizes of
keys and values, ``R`` queries of a block.
"""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,index,operator,arg-type,untyped-decorator"
from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - triton comes with every CUDA build of torch
    triton = None

AVAILABLE = triton is not None
OVERLAPS = AVAILABLE and hasattr(tl.extra.cuda, "gdc_wait")
"""Whether this Triton can begin a kernel while the one before it still runs (programmatic dependent launch)."""
ABSENT = 2**30
"""The padding of a row that is absent from a batch. Such a row attends to itself alone and stores nothing."""

if AVAILABLE:
    LOG2_E = tl.constexpr(1.4426950408889634)  # softmax is computed in powers of two
    ABSENT_PAD = tl.constexpr(ABSENT)
    let_next_begin = getattr(tl.extra.cuda, "gdc_launch_dependents", None)
    wait_for_last = getattr(tl.extra.cuda, "gdc_wait", None)

    @triton.jit
    def _tile(
        q, keys, k_token, values, v_token, at, end, low, high, running_max, running_sum, acc, scale, softcap,
        SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
        BLOCK_N: tl.constexpr, MASKED: tl.constexpr, HAS_CAP: tl.constexpr,
    ):  # fmt: skip
        """Fold keys ``at`` to ``at + BLOCK_N`` into a running softmax. ``MASKED``: not all queries see all keys."""
        n = (at + tl.arange(0, BLOCK_N)).to(tl.int64)
        d = tl.arange(0, BLOCK_D)
        dv = tl.arange(0, BLOCK_DV)
        key_at = keys + n[None, :] * k_token + d[:, None]
        value_at = values + n[:, None] * v_token + dv[None, :]
        if MASKED:
            k = tl.load(key_at, mask=(n[None, :] < end) & (d[:, None] < SIZE), other=0.0)
            v = tl.load(value_at, mask=(n[:, None] < end) & (dv[None, :] < VALUE_SIZE), other=0.0)
        else:
            k = tl.load(key_at) if BLOCK_D == SIZE else tl.load(key_at, mask=d[:, None] < SIZE, other=0.0)
            whole: tl.constexpr = BLOCK_DV == VALUE_SIZE
            v = tl.load(value_at) if whole else tl.load(value_at, mask=dv[None, :] < VALUE_SIZE, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_CAP:
            tanh = 2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0
            scores = softcap * tanh
        scores = scores * LOG2_E
        if MASKED:
            seen = (n[None, :] >= low[:, None]) & (n[None, :] < high[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(running_max, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(running_max - base)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        return new, running_sum * decay + tl.sum(weights, 1), acc

    @triton.jit
    def _span(
        q, keys, k_token, values, v_token, begin, end, low, high, running_max, running_sum, acc, scale, softcap,
        SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
        BLOCK_N: tl.constexpr, HAS_CAP: tl.constexpr,
    ):  # fmt: skip
        """Fold keys ``begin`` to ``end`` into a running softmax. Query r sees keys ``low[r]`` to ``high[r] - 1``."""
        plain = begin
        if tl.max(low) <= begin:
            plain = begin + tl.maximum(tl.minimum(end, tl.min(high)) - begin, 0) // BLOCK_N * BLOCK_N
        for at in range(begin, plain, BLOCK_N):
            running_max, running_sum, acc = _tile(
                q, keys, k_token, values, v_token, at, end, low, high, running_max, running_sum, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, False, HAS_CAP,
            )  # fmt: skip
        for at in range(plain, end, BLOCK_N):
            running_max, running_sum, acc = _tile(
                q, keys, k_token, values, v_token, at, end, low, high, running_max, running_sum, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, True, HAS_CAP,
            )  # fmt: skip
        return running_max, running_sum, acc

    @triton.jit
    def _merge(running_max, running_sum, acc, lse, found):
        """Merge in a finished part: its output (R, Dv) and its log-sum-exp (R,), base 2."""
        new = tl.maximum(running_max, lse)
        base = tl.where(new == float("-inf"), 0.0, new)
        mine, theirs = tl.exp2(running_max - base), tl.exp2(lse - base)
        return new, running_sum * mine + theirs, acc * mine[:, None] + found * theirs[:, None]

    @triton.jit
    def _merge_runs(
        running_max, running_sum, acc, part, part_lse, at, apart, real, mask, dv, VALUE_SIZE: tl.constexpr,
        SPLITS: tl.constexpr
    ):  # fmt: skip
        """Merge in the runs of the prefix, which lie ``apart`` elements from each other."""
        for split in tl.static_range(SPLITS):
            where = at.to(tl.int64) + split * tl.full([], 1, tl.int64) * apart
            lse = tl.load(part_lse + where, mask=real, other=float("-inf"))
            found = tl.load(part + where[:, None] * VALUE_SIZE + dv[None, :], mask=mask, other=0.0)
            running_max, running_sum, acc = _merge(running_max, running_sum, acc, lse, found)
        return running_max, running_sum, acc

    @triton.jit
    def _merge_library(
        running_max, running_sum, acc, part, part_lse, queries, token, head, heads, real, mask, dv,
        VALUE_SIZE: tl.constexpr
    ):  # fmt: skip
        """Merge in a part that cuDNN computed: output (queries, H, Dv) and log-sum-exp (H, queries), base e."""
        lse = tl.load(part_lse + head * queries + token, mask=real, other=float("-inf")) * LOG2_E
        at = token.to(tl.int64) * heads + head
        found = tl.load(part + at[:, None] * VALUE_SIZE + dv[None, :], mask=mask, other=0.0)
        return _merge(running_max, running_sum, acc, lse, found.to(tl.float32))

    @triton.jit
    def _address(table, column, like):
        """The buffer whose address is in ``column`` of the table, with the dtype of ``like``."""
        return tl.multiple_of(tl.load(table + column).to(tl.pointer_type(like.dtype.element_ty)), 16)

    @triton.jit(do_not_specialize=["rows", "queries"])
    def prefix_part(
        query, q_row, q_head, q_token, table, state, bounds, part, part_lse, rows, queries, scale, softcap, window,
        GROUPS: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_DV: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr,
        HAS_CAP: tl.constexpr, BLOCK_PARTS: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        """One run of the prefix for a block of queries of one key head: the output and the log-sum-exp, base 2.

        ``BLOCK_PARTS``: 0 if all rows see one prefix; otherwise rows of one query each lie in blocks with a prefix of
        their own, whose first row and number of rows are in ``bounds``, and this many programs share a block.
        ``EARLY``: the next kernel may begin now with the work that does not depend on this one's results.
        """
        if EARLY:
            let_next_begin()
        block, split, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        splits, key_heads = tl.num_programs(1), tl.num_programs(2)
        if BLOCK_PARTS:
            prefix = block // BLOCK_PARTS
            r = block % BLOCK_PARTS * BLOCK_R + tl.arange(0, BLOCK_R)
            row = tl.load(bounds + 2 * prefix) + r // GROUPS
            token = tl.zeros([BLOCK_R], tl.int32)
            real = r // GROUPS < tl.load(bounds + 2 * prefix + 1)
            column = 2 + 2 * rows + 2 * prefix
        else:
            r = block * BLOCK_R + tl.arange(0, BLOCK_R)
            row = r // (queries * GROUPS)
            token = r // GROUPS % queries
            real = row < rows
            column = 0
        group = r % GROUPS
        length = tl.load(state + 1 + row, mask=real, other=0)
        pad = tl.load(state + 1 + rows + row, mask=real, other=0)
        begin, longest = tl.load(state), tl.max(length)
        low = tl.full([BLOCK_R], 0, tl.int32)
        if HAS_WINDOW:
            is_present = real & (pad < ABSENT_PAD)
            slot = tl.load(state + 1 + 2 * rows + row, mask=real, other=0)
            low = tl.where(is_present, length - pad + slot + token - window + 1, longest)
            begin = tl.maximum(begin, tl.min(low))
        per = tl.cdiv(tl.cdiv(tl.maximum(longest - begin, 0), splits), BLOCK_N) * BLOCK_N
        begin += split * per

        d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
        q_at = (
            query + row.to(tl.int64) * q_row + (head * GROUPS + group) * q_head + token.to(tl.int64) * q_token
        )
        q = tl.load(q_at[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < SIZE), other=0.0)
        running_max, running_sum, acc = _span(
            q, _address(table, column, query) + head * SIZE, key_heads * SIZE,
            _address(table, column + 1, query) + head * VALUE_SIZE, key_heads * VALUE_SIZE,
            begin, tl.minimum(begin + per, longest), low, tl.where(real, length, longest),
            tl.full([BLOCK_R], float("-inf"), tl.float32), tl.zeros([BLOCK_R], tl.float32),
            tl.zeros([BLOCK_R, BLOCK_DV], tl.float32), scale, softcap,
            SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_CAP,
        )  # fmt: skip

        at = (
            (split * rows + row).to(tl.int64) * key_heads * GROUPS + head * GROUPS + group
        ) * queries + token
        out = acc / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]
        mask = real[:, None] & (dv[None, :] < VALUE_SIZE)
        tl.store(part + at[:, None] * VALUE_SIZE + dv[None, :], out, mask=mask)
        # minus infinity for a query that sees no key
        tl.store(part_lse + at, running_max + tl.log2(running_sum), mask=real)

    @triton.jit(do_not_specialize=["rows", "queries", "lib_prefix_queries", "causal_queries"])
    def own_part(
        query, q_row, q_head, q_token, key, k_row, k_head, k_token, value, v_row, v_head, v_token,
        table, state, sinks, part, part_lse, lib_prefix, lib_prefix_lse, lib_prefix_queries, out, rows, queries,
        causal_queries, scale, softcap,
        window, GROUPS: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_DV: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
        HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_PAST: tl.constexpr,
        HAS_LIB_PREFIX: tl.constexpr, STORES: tl.constexpr, BY_BLOCK: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        """A row's own tokens, of earlier steps and of this one, for one key head; merges in the runs of the prefix.

        Covers the blocks from the one with query ``causal_queries`` on. ``STORES``: store the new keys and values in
        the row's own buffers. ``BY_BLOCK``: absent rows are in no block of the prefix, so they have no runs to merge.
        ``EARLY``: the kernel before this one may still be running.
        """
        order = tl.num_programs(0) - 1 - tl.program_id(0)  # blocks with the most keys start first
        block = causal_queries * GROUPS // BLOCK_R + order
        row, head = tl.program_id(1), tl.program_id(2)
        row64, key_heads = row.to(tl.int64), tl.num_programs(2)
        pad = tl.load(state + 1 + rows + row)
        slot = tl.load(state + 1 + 2 * rows + row)
        own_keys = _address(table, 2 + row, query) + head * SIZE
        own_values = _address(table, 2 + rows + row, query) + head * VALUE_SIZE
        new_keys = key + row64 * k_row + head * k_head
        new_values = value + row64 * v_row + head * v_head

        r = block * BLOCK_R + tl.arange(0, BLOCK_R)
        token = r // GROUPS
        group = r % GROUPS
        real = token < queries
        d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
        q_at = query + row64 * q_row + (head * GROUPS + group) * q_head + token.to(tl.int64) * q_token
        q = tl.load(q_at[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < SIZE), other=0.0)
        # the first visible key, as an index among the new tokens
        low = tl.full([BLOCK_R], 0, tl.int32) + pad - slot
        if HAS_WINDOW:
            low = tl.maximum(low, token - window + 1)
        running_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
        running_sum = tl.zeros([BLOCK_R], tl.float32)
        acc = tl.zeros([BLOCK_R, BLOCK_DV], tl.float32)
        if HAS_PAST:
            past = tl.where(real, low + slot, slot)
            running_max, running_sum, acc = _span(
                q, own_keys, key_heads * SIZE, own_values, key_heads * VALUE_SIZE, tl.maximum(tl.min(past), 0), slot,
                past, tl.full([BLOCK_R], 0, tl.int32) + slot, running_max, running_sum, acc, scale, softcap,
                SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_CAP,
            )  # fmt: skip
        # a padding token sees itself, so that its softmax is not empty
        low = tl.where(real, tl.minimum(low, token), 0)
        last = tl.minimum((block * BLOCK_R + BLOCK_R - 1) // GROUPS, queries - 1)
        running_max, running_sum, acc = _span(
            q, new_keys, k_token, new_values, v_token, tl.maximum(tl.min(low), 0), last + 1,
            low, token + 1, running_max, running_sum, acc, scale, softcap,
            SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_CAP,
        )  # fmt: skip
        # each block stores an equal number of the new tokens of a row that is present
        if STORES and pad < ABSENT_PAD:
            share = tl.cdiv(queries, tl.num_programs(0))
            for at in range(order * share, tl.minimum((order + 1) * share, queries), 16):
                n = (at + tl.arange(0, 16)).to(tl.int64)
                mine = n[:, None] < tl.minimum((order + 1) * share, queries)
                k = tl.load(new_keys + n[:, None] * k_token + d[None, :], mask=mine & (d[None, :] < SIZE))
                v = tl.load(
                    new_values + n[:, None] * v_token + dv[None, :], mask=mine & (dv[None, :] < VALUE_SIZE)
                )
                to = (slot + n)[:, None] * key_heads
                tl.store(own_keys + to * SIZE + d[None, :], k, mask=mine & (d[None, :] < SIZE))
                tl.store(
                    own_values + to * VALUE_SIZE + dv[None, :], v, mask=mine & (dv[None, :] < VALUE_SIZE)
                )

        if EARLY:
            wait_for_last()
        mask = real[:, None] & (dv[None, :] < VALUE_SIZE)
        at = (row64 * key_heads * GROUPS + head * GROUPS + group) * queries + token
        running_max, running_sum, acc = _merge_runs(
            running_max, running_sum, acc, part, part_lse, at, rows * key_heads * GROUPS * queries,
            real & (pad < ABSENT_PAD) if BY_BLOCK else real, mask & (pad < ABSENT_PAD) if BY_BLOCK else mask, dv,
            VALUE_SIZE, SPLITS,
        )  # fmt: skip
        if HAS_LIB_PREFIX:
            running_max, running_sum, acc = _merge_library(
                running_max, running_sum, acc, lib_prefix, lib_prefix_lse, lib_prefix_queries, token,
                head * GROUPS + group,
                key_heads * GROUPS, real, mask, dv, VALUE_SIZE,
            )  # fmt: skip
        if HAS_SINKS:
            sink = tl.load(sinks + head * GROUPS + group).to(tl.float32) * LOG2_E
            running_max, running_sum, acc = _merge(
                running_max, running_sum, acc, sink, tl.zeros([BLOCK_R, BLOCK_DV], tl.float32)
            )
        found = acc / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]
        at = (row64 * queries + token) * key_heads * GROUPS + head * GROUPS + group
        tl.store(out + at[:, None] * VALUE_SIZE + dv[None, :], found.to(out.dtype.element_ty), mask=mask)

    @triton.jit(
        do_not_specialize=["lib_prefix_queries", "lib_causal_queries", "queries", "causal_queries", "heads"]
    )
    def merged(
        sinks, part, part_lse, lib_prefix, lib_prefix_lse, lib_prefix_queries, lib_causal, lib_causal_lse,
        lib_causal_queries, out, queries, causal_queries,
        heads, VALUE_SIZE: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
        HAS_SINKS: tl.constexpr, HAS_LIB_PREFIX: tl.constexpr,
    ):  # fmt: skip
        """Merge cuDNN's parts and the runs of the prefix for the queries before ``causal_queries`` of one row."""
        at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        token, head = at // heads, at % heads
        real = token < causal_queries
        dv = tl.arange(0, BLOCK_DV)
        mask = real[:, None] & (dv[None, :] < VALUE_SIZE)
        running_max = tl.full([ROWS], float("-inf"), tl.float32)
        running_sum = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_DV], tl.float32)
        running_max, running_sum, acc = _merge_library(
            running_max, running_sum, acc, lib_causal, lib_causal_lse, lib_causal_queries, token, head, heads,
            real, mask, dv, VALUE_SIZE
        )  # fmt: skip
        if HAS_LIB_PREFIX:
            running_max, running_sum, acc = _merge_library(
                running_max, running_sum, acc, lib_prefix, lib_prefix_lse, lib_prefix_queries, token, head, heads,
                real, mask, dv, VALUE_SIZE
            )  # fmt: skip
        running_max, running_sum, acc = _merge_runs(
            running_max, running_sum, acc, part, part_lse, head * queries + token, heads * queries, real, mask, dv,
            VALUE_SIZE,
            SPLITS,
        )  # fmt: skip
        if HAS_SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
            running_max, running_sum, acc = _merge(
                running_max, running_sum, acc, sink, tl.zeros([ROWS, BLOCK_DV], tl.float32)
            )
        found = (acc / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None]).to(out.dtype.element_ty)
        tl.store(out + at.to(tl.int64)[:, None] * VALUE_SIZE + dv[None, :], found, mask=mask)
