"""Launches the kernels of `triton_kernels`: what they read from device memory, how their work is cut up.

Names of sizes: ``B`` rows (branches), ``H`` query heads, ``K`` key heads, ``M`` queries a row, ``D`` and ``Dv`` head
sizes of keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wim_kernel.engines.local.attention import triton_kernels as kernels
from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.attention.triton_kernels import ABSENT as ABSENT

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NO_WINDOW = 2**30
HOPPER_SHARED = 227 * 1024
ALIGNED = 16
"""Own buffers have room for a multiple of so many tokens, so that all their addresses are multiples of 16 bytes."""


def table_row(
    keys: Tensor, values: Tensor, own_keys: Sequence[Tensor], own_values: Sequence[Tensor]
) -> list[int]:
    """A layer's row of the table, int64: addresses, which are good for as long as these tensors live.

    Args:
        keys: the prefix's, (capacity, K, D).
        values: the prefix's, (capacity, K, Dv).
        own_keys: each row's own, (room, K, D).
        own_values: each row's own, (room, K, Dv).
    """
    return [item.data_ptr() for item in (keys, values, *own_keys, *own_values)]


def pack_state(base: int, lengths: Sequence[int], pads: Sequence[int], slots: Sequence[int]) -> list[int]:
    """What a step reads on the device about its rows, int32, [base, B lengths, B pads, B slots].

    Args:
        base: the first position of the prefix that is looked at.
        lengths: how much of the prefix each row sees.
        pads: the first slot that is each row's own text; slots before it are padding.
        slots: where in its own buffer each row writes the first of this step's tokens.
    """
    return [base, *lengths, *pads, *slots]


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA, and anywhere under Triton's interpreter."""
    return kernels.AVAILABLE and (device.type == "cuda" or interpreted())


def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU, as tests ask with TRITON_INTERPRET=1."""
    return kernels.AVAILABLE and type(kernels.prefix_part).__name__ == "InterpretedFunction"


@dataclass(frozen=True)
class Elsewhere:
    """Parts of a chunk's attention that a library computed, for one row.

    A part is an output (1, H, M or more, Dv), stored token by token, and its log-sum-exp (1, H, M or more).

    Attributes:
        outer: the chunk's queries on the first tokens of the prefix.
        inner: its first queries on themselves. The chunk's keys and values are then stored by the caller.
        done: of how many queries ``inner`` is good.
    """

    outer: tuple[Tensor, Tensor] | None = None
    inner: tuple[Tensor, Tensor] | None = None
    done: int = 0


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


def prefix_blocks(shape: Shape, shared_bytes: int = HOPPER_SHARED) -> Blocks:
    """Blocks of the prefix kernel, by what measured best on an H100; a block's accumulators must fit the registers."""
    return _fitted(_best_prefix_blocks(shape), shape, shared_bytes)


def own_blocks(shape: Shape, shared_bytes: int = HOPPER_SHARED) -> Blocks:
    """Blocks of the kernel over own tokens, likewise."""
    return _fitted(_best_own_blocks(shape), shape, shared_bytes)


def _fitted(blocks: Blocks, shape: Shape, shared_bytes: int) -> Blocks:
    """The blocks with as few stages, and then keys, less as a multiprocessor's shared memory wants."""
    width = _power(shape.size) * shape.itemsize
    while blocks.queries * width + blocks.stages * blocks.keys * 2 * width > shared_bytes:
        if blocks.stages > 1:
            blocks = replace(blocks, stages=blocks.stages - 1)
        elif blocks.keys > 16:
            blocks = replace(blocks, keys=blocks.keys // 2)
        else:
            break
    return blocks


def _best_prefix_blocks(shape: Shape) -> Blocks:
    queries = shape.rows * shape.queries * shape.groups
    if shape.itemsize == 4:  # no matrix units in full float32, so small blocks
        return Blocks(16, 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, _power(queries)), 32, 8, 2)
    block = min(128, _power(queries))
    return Blocks(block, 64, 8 if block == 128 else 4, 4 if block == 128 and shape.queries == 1 else 3)


def _best_own_blocks(shape: Shape) -> Blocks:
    queries = shape.queries * shape.groups
    if shape.itemsize == 4:
        return Blocks(16, 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, _power(queries)), 32, 8, 2)
    if shape.queries == 1:  # in the memory that the kernel over the prefix, which still runs, leaves to it
        if shape.rows > 16:
            return Blocks(_power(queries), 64, 4, 2)
        return Blocks(_power(queries), 128, 8, 2 if shape.rows <= 4 else 1)
    block = min(128, _power(queries))
    return Blocks(block, 64, 8 if block == 128 else 4, 3)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return int(getattr(properties, "shared_memory_per_block_optin", HOPPER_SHARED))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; a few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def prefix_splits(query: Tensor, key: Tensor, longest: int) -> int:
    """Into how many runs to cut ``longest`` tokens of prefix so that every multiprocessor has work once.

    Args:
        query: (B, H, M, D).
        key: (B, K, M, D).
        longest: most tokens that a row sees; 0 gives 0.
    """
    if longest == 0:
        return 0
    shape = _shape(query, key, key)
    blocks = prefix_blocks(shape, shared_memory(query.device))
    programs = _blocks(shape.rows * shape.queries * shape.groups, blocks.queries) * shape.key_heads
    splits = min(32, max(1, multiprocessors(query.device) // programs), _blocks(longest, blocks.keys))
    return 1 << (splits.bit_length() - 1)  # few different ones, since each is compiled


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
    elsewhere: Elsewhere | None = None,
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
        elsewhere: parts that were computed elsewhere, for one row.

    Returns:
        (B, M, H, Dv), contiguous.

    Raises:
        ValueError: if queries, keys and values differ in type, or are not contiguous in their last dimension. What the
            table points at must be of that type, too, which cannot be seen here.
    """
    rows, heads, queries, size = query.shape
    key_heads, value_size = key.shape[1], value.shape[-1]
    groups = heads // key_heads
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"Queries, keys and values are {query.dtype}, {key.dtype} and {value.dtype}, not of one type."
        )
    shape, shared = _shape(query, key, value), shared_memory(query.device)
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
    elsewhere = elsewhere or Elsewhere()
    early = splits > 0 and _overlaps(query.device)
    out = query.new_empty(rows, queries, heads, value_size)
    part = query.new_empty(max(splits, 1) * rows * heads * queries * value_size, dtype=torch.float32)
    part_lse = query.new_empty(max(splits, 1) * rows * heads * queries, dtype=torch.float32)
    with on_device(query.device):
        if splits:
            blocks = prefix_blocks(shape, shared)
            grid = (_blocks(rows * queries * groups, blocks.queries), splits, key_heads)
            kernels.prefix_part[grid](
                query, *_strides(query), table, state, part, part_lse, rows, queries, terms.scale, cap, window,
                **sizes, BLOCK_R=blocks.queries, BLOCK_N=blocks.keys, EARLY=early, num_warps=blocks.warps,
                num_stages=blocks.stages,
            )  # fmt: skip
        sinks = query if terms.sinks is None else terms.sinks
        outer, inner = (_part(part, out, part_lse) for part in (elsewhere.outer, elsewhere.inner))
        kinds = {
            "SPLITS": splits,
            "HAS_SINKS": terms.sinks is not None,
            "HAS_OUTER": elsewhere.outer is not None,
        }
        blocks, done = own_blocks(shape, shared), elsewhere.done
        grid = (_blocks(queries * groups, blocks.queries) - done * groups // blocks.queries, rows, key_heads)
        if done < queries:
            kernels.own_part[grid](
                query, *_strides(query), key, *_strides(key), value, *_strides(value), table, state, sinks,
                part, part_lse, *outer, out, rows, queries, done, terms.scale, cap, window,
                **sizes, **kinds, BLOCK_R=blocks.queries, BLOCK_N=blocks.keys, HAS_PAST=past,
                STORES=elsewhere.inner is None, EARLY=early, num_warps=blocks.warps, num_stages=blocks.stages,
                **({"launch_pdl": True} if early else {}),
            )  # fmt: skip
        if done:
            kernels.merged[(_blocks(done * heads, 16),)](
                sinks, part, part_lse, *outer, *inner, out, queries, done, heads,
                **kinds, VALUE_SIZE=value_size, BLOCK_DV=_power(value_size), ROWS=16, num_warps=4,
            )  # fmt: skip
    return out


def _part(part: tuple[Tensor, Tensor] | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, int]:
    """A part as the kernel takes it, with how many queries it has; something of the right types if there is none."""
    return (out, lse, 0) if part is None else (*part, part[1].shape[2])


@functools.cache
def _overlaps(device: torch.device) -> bool:
    """Whether a kernel can begin there while the one before it still runs: on Hopper and later."""
    nvidia = kernels.OVERLAPS and device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def _shape(query: Tensor, key: Tensor, value: Tensor) -> Shape:
    rows, heads, queries, size = query.shape
    key_heads = key.shape[1]
    return Shape(
        rows, queries, key_heads, heads // key_heads, max(size, value.shape[-1]), query.element_size()
    )


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    row, head, token, one = tensor.stride()
    if one != 1:
        raise ValueError("The last dimension must be contiguous.")
    return row, head, token


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launch on a device, if it is one of several."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _blocks(number: int, size: int) -> int:
    """How many blocks of a size hold a number."""
    return -(-number // size)


def _power(number: int) -> int:
    """The next power of two, 16 at least, as matrix units want it."""
    return max(16, 1 << (number - 1).bit_length())
