"""How much work a block of the kernels in `triton_kernels` takes, by the shape of a pass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

HOPPER_SHARED = 227 * 1024


@dataclass(frozen=True)
class Shape:
    """The sizes on which the choice of blocks depends.

    Attributes:
        rows: number of rows.
        queries: number of queries per row.
        key_heads: number of key heads.
        groups: number of query heads that share a key head.
        size: head size, the larger of keys' and values'.
        itemsize: bytes of an element.
    """

    rows: int
    queries: int
    key_heads: int
    groups: int
    size: int
    itemsize: int


@dataclass(frozen=True)
class Blocks:
    """A kernel's launch parameters: queries and keys of a block, warps, pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


def prefix_blocks(shape: Shape, shared_bytes: int = HOPPER_SHARED) -> Blocks:
    """Blocks of the prefix kernel: the fastest on an H100 whose accumulators fit the registers."""
    return _fitted(_best_prefix_blocks(shape), shape, shared_bytes)


def own_blocks(shape: Shape, shared_bytes: int = HOPPER_SHARED) -> Blocks:
    """Blocks of the kernel over rows' own tokens: the fastest on an H100 whose accumulators fit the registers."""
    return _fitted(_best_own_blocks(shape), shape, shared_bytes)


def _fitted(blocks: Blocks, shape: Shape, shared_bytes: int) -> Blocks:
    """The blocks with fewer stages, and then fewer keys, until they fit a multiprocessor's shared memory."""
    width = power(shape.size) * shape.itemsize
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
    if shape.itemsize == 4:  # there are no matrix units for full float32, so blocks are small
        return Blocks(16, 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, power(queries)), 32, 8, 2)
    block = min(128, power(queries))
    return Blocks(block, 64, 8 if block == 128 else 4, 4 if block == 128 and shape.queries == 1 else 3)


def _best_own_blocks(shape: Shape) -> Blocks:
    queries = shape.queries * shape.groups
    if shape.itemsize == 4:
        return Blocks(16, 16, 4, 1)
    if shape.size > 128:
        return Blocks(min(64, power(queries)), 32, 8, 2)
    if shape.queries == 1:  # shares a multiprocessor's memory with the prefix kernel, which still runs
        if shape.rows > 16:
            return Blocks(power(queries), 64, 4, 2)
        return Blocks(power(queries), 128, 8, 2 if shape.rows <= 4 else 1)
    block = min(128, power(queries))
    return Blocks(block, 64, 8 if block == 128 else 4, 3)


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Most bytes of shared memory that a block may use."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return int(getattr(properties, "shared_memory_per_block_optin", HOPPER_SHARED))


def blocks_of(number: int, size: int) -> int:
    """The number of blocks of ``size`` that hold ``number`` items."""
    return -(-number // size)


def power(number: int) -> int:
    """The next power of two, at least 16: the smallest tile of the matrix units."""
    return max(16, 1 << (number - 1).bit_length())
