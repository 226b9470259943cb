"""Launches the kernels of `triton_kernels`: their inputs in device memory, block sizes and splits.

Sizes: ``B`` rows (branches), ``H`` query heads, ``K`` key heads, ``M`` queries per row, ``D`` and ``Dv`` head sizes of
keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.engines.local.attention import triton_kernels as kernels
from wim_kernel.engines.local.attention.block_sizes import (
    Shape,
    blocks_of,
    own_blocks,
    power,
    prefix_blocks,
    shared_memory,
)
from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.attention.triton_kernels import ABSENT as ABSENT

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NO_WINDOW = 2**30
ALIGNED = 16
"""The room of rows' own buffers is a multiple of this many tokens, so that all addresses are multiples of 16 bytes."""


@dataclass(frozen=True)
class RowBlocks:
    """Rows on several prefixes: blocks of adjacent rows, each of which sees a prefix of its own.

    Attributes:
        bounds: for each block its first row and its number of rows, int32, (blocks, 2). A block may have no rows. The
            address table has two further columns for each: the addresses of its prefix's keys and of its values.
        most_rows: most rows of a block.
    """

    bounds: Tensor
    most_rows: int


def table_row(
    keys: Tensor, values: Tensor, own_keys: Sequence[Tensor], own_values: Sequence[Tensor]
) -> list[int]:
    """A layer's row of the address table, int64. The addresses are valid for as long as these tensors live.

    Args:
        keys: keys of the prefix, (capacity, K, D).
        values: values of the prefix, (capacity, K, Dv).
        own_keys: for each row, the buffer of its own keys, (room, K, D).
        own_values: for each row, the buffer of its own values, (room, K, Dv).
    """
    return [item.data_ptr() for item in (keys, values, *own_keys, *own_values)]


def pack_state(base: int, lengths: Sequence[int], pads: Sequence[int], slots: Sequence[int]) -> list[int]:
    """The state of rows that the kernels read on the device, int32: [base, B lengths, B pads, B slots].

    Args:
        base: first position of the prefix that the kernels attend to.
        lengths: number of prefix tokens that each row sees.
        pads: number of padding slots at the beginning of each row's own buffer.
        slots: slot of each row's own buffer to which the first of the pass's tokens is written.
    """
    return [base, *lengths, *pads, *slots]


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA, and on every device under Triton's interpreter."""
    return kernels.AVAILABLE and (device.type == "cuda" or interpreted())


def interpreted() -> bool:
    """Whether Triton interprets the kernels on the CPU, as it does with TRITON_INTERPRET=1 (used by tests)."""
    return kernels.AVAILABLE and type(kernels.prefix_part).__name__ == "InterpretedFunction"


@dataclass(frozen=True)
class CudnnPartials:
    """Partial results of a chunk's attention that cuDNN computed; for a batch of one row.

    A partial result is an output (1, H, M or more, Dv), stored token by token, and its log-sum-exp (1, H, M or more).

    Attributes:
        prefix: attention of the chunk to the first tokens of the prefix.
        causal: attention of the chunk to itself. The caller has then stored the chunk's keys and values.
        causal_queries: number of leading queries for which ``causal`` is valid.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    causal: tuple[Tensor, Tensor] | None = None
    causal_queries: int = 0


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a device; a small number where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def prefix_splits(query: Tensor, key: Tensor, longest: int, row_blocks: RowBlocks | None = None) -> int:
    """Number of runs to cut the prefix into, so that one wave of blocks fills the multiprocessors (flash-decoding).

    Args:
        query: (B, H, M, D).
        key: (B, K, M, D).
        longest: most prefix tokens that a row sees; 0 gives 0.
        row_blocks: the rows of each prefix; None if all rows see one.
    """
    if longest == 0:
        return 0
    shape, count = _prefix_shape(_shape(query, key, key), row_blocks)
    blocks = prefix_blocks(shape, shared_memory(query.device))
    programs = count * blocks_of(shape.rows * shape.queries * shape.groups, blocks.queries) * shape.key_heads
    splits = min(32, max(1, multiprocessors(query.device) // programs), blocks_of(longest, blocks.keys))
    return 1 << (splits.bit_length() - 1)  # a power of two, since each number is compiled


def branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    table: Tensor,
    state: Tensor,
    splits: int,
    *,
    past: bool = True,
    partials: CudnnPartials | None = None,
    row_blocks: RowBlocks | None = None,
) -> Tensor:
    """Attention of rows over the visible prefix and their own tokens; stores the new keys and values.

    Args:
        query: queries of the new tokens, (B, H, M, D); the last dimension is contiguous.
        key: keys of the new tokens, (B, K, M, D); the last dimension is contiguous.
        value: values of the new tokens, (B, K, M, Dv); the last dimension is contiguous.
        params: scale, window, softcap and sinks.
        table: the layer's row of the address table, see `table_row`. The buffers must have the dtype of ``query``,
            which cannot be checked here.
        state: the state of the rows, see `pack_state`.
        splits: number of runs that the prefix is cut into; 0 if no row sees any of it.
        past: whether rows may have own tokens from earlier steps.
        partials: partial results to merge in, for a batch of one row.
        row_blocks: the rows of each prefix, with one query a row; None if all rows see one prefix.

    Returns:
        (B, M, H, Dv), contiguous.

    Raises:
        ValueError: if queries, keys and values differ in dtype, or are not contiguous in their last dimension.
    """
    rows, heads, queries, size = query.shape
    key_heads, value_size = key.shape[1], value.shape[-1]
    groups = heads // key_heads
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"Queries, keys and values are {query.dtype}, {key.dtype} and {value.dtype}, not of one type."
        )
    shape, shared = _shape(query, key, value), shared_memory(query.device)
    window = NO_WINDOW if params.window is None else params.window
    cap = 0.0 if params.softcap is None else params.softcap
    sizes = {
        "GROUPS": groups,
        "SIZE": size,
        "VALUE_SIZE": value_size,
        "BLOCK_D": power(size),
        "BLOCK_DV": power(value_size),
        "HAS_WINDOW": params.window is not None,
        "HAS_CAP": params.softcap is not None,
    }
    partials = partials or CudnnPartials()
    early = splits > 0 and _overlaps(query.device)
    out = query.new_empty(rows, queries, heads, value_size)
    part = query.new_empty(max(splits, 1) * rows * heads * queries * value_size, dtype=torch.float32)
    part_lse = query.new_empty(max(splits, 1) * rows * heads * queries, dtype=torch.float32)
    with on_device(query.device):
        if splits:
            block_shape, count = _prefix_shape(shape, row_blocks)
            blocks = prefix_blocks(block_shape, shared)
            parts = blocks_of(block_shape.rows * queries * groups, blocks.queries)
            kernels.prefix_part[count * parts, splits, key_heads](
                query, *_strides(query), table, state, state if row_blocks is None else row_blocks.bounds, part,
                part_lse, rows, queries, params.scale, cap, window, **sizes, BLOCK_R=blocks.queries,
                BLOCK_N=blocks.keys, BLOCK_PARTS=0 if row_blocks is None else parts, EARLY=early,
                num_warps=blocks.warps, num_stages=blocks.stages,
            )  # fmt: skip
        sinks = query if params.sinks is None else params.sinks
        prefix, causal = (_part(part, out, part_lse) for part in (partials.prefix, partials.causal))
        kinds = {
            "SPLITS": splits,
            "HAS_SINKS": params.sinks is not None,
            "HAS_LIB_PREFIX": partials.prefix is not None,
        }
        blocks, causal_queries = own_blocks(shape, shared), partials.causal_queries
        grid = (
            blocks_of(queries * groups, blocks.queries) - causal_queries * groups // blocks.queries,
            rows,
            key_heads,
        )
        if causal_queries < queries:
            kernels.own_part[grid](
                query, *_strides(query), key, *_strides(key), value, *_strides(value), table, state, sinks,
                part, part_lse, *prefix, out, rows, queries, causal_queries, params.scale, cap, window,
                **sizes, **kinds, BLOCK_R=blocks.queries, BLOCK_N=blocks.keys, HAS_PAST=past,
                STORES=partials.causal is None, BY_BLOCK=row_blocks is not None, EARLY=early, num_warps=blocks.warps,
                num_stages=blocks.stages, **({"launch_pdl": True} if early else {}),
            )  # fmt: skip
        if causal_queries:
            kernels.merged[(blocks_of(causal_queries * heads, 16),)](
                sinks, part, part_lse, *prefix, *causal, out, queries, causal_queries, heads,
                **kinds, VALUE_SIZE=value_size, BLOCK_DV=power(value_size), ROWS=16, num_warps=4,
            )  # fmt: skip
    return out


def _part(part: tuple[Tensor, Tensor] | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, int]:
    """A partial result as kernel arguments: output, log-sum-exp, queries. Placeholders if there is none."""
    return (out, lse, 0) if part is None else (*part, part[1].shape[2])


@functools.cache
def _overlaps(device: torch.device) -> bool:
    """Whether a device can begin a kernel while the one before still runs: Hopper and later (dependent launch)."""
    nvidia = kernels.OVERLAPS and device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def _shape(query: Tensor, key: Tensor, value: Tensor) -> Shape:
    rows, heads, queries, size = query.shape
    key_heads = key.shape[1]
    return Shape(
        rows, queries, key_heads, heads // key_heads, max(size, value.shape[-1]), query.element_size()
    )


def _prefix_shape(shape: Shape, row_blocks: RowBlocks | None) -> tuple[Shape, int]:
    """The shape of the rows that see one prefix, and the number of prefixes."""
    if row_blocks is None:
        return shape, 1
    return replace(shape, rows=row_blocks.most_rows), len(row_blocks.bounds)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    row, head, token, one = tensor.stride()
    if one != 1:
        raise ValueError("The last dimension must be contiguous.")
    return row, head, token


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """A context in which kernels are launched on ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
