"""The kernels, compiled, against attention written out in float64; the ways of reading a chunk against each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from kernel_cases import Case, check, falling

from wim_kernel.engines.local.attention.parts import AttentionParams, extend_attention
from wim_kernel.engines.local.attention.triton_launch import (
    CudnnPartials,
    branch_attention,
    pack_state,
    prefix_splits,
    table_row,
)
from wim_kernel.engines.local.backends import cudnn

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097])
def test_prefix_lengths_around_the_edges_of_blocks(length):
    check(Case((length, length - 1, 0), heads=(8, 2), size=64, slot=5), "cuda", [torch.bfloat16])


GROUPS = [((8, 8), 64), ((8, 4), 64), ((8, 2), 64), ((8, 1), 64), ((7, 1), 128), ((24, 3), 80)]
SIZES = [((32, 8), 80), ((32, 8), 96), ((32, 8), 128), ((8, 4), 192), ((8, 4), 256), ((8, 1), 256)]


@pytest.mark.parametrize(("heads", "size"), [*GROUPS, *SIZES])
def test_groups_and_sizes_of_heads(heads, size):
    check(Case((300, 211), heads=heads, size=size, slot=5, pads=(0, 2)), "cuda", [torch.bfloat16])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 16, 33, 64])
def test_numbers_of_rows(rows):
    check(Case(falling(1500, rows), heads=(32, 8), size=128, slot=40), "cuda", [torch.bfloat16])


@pytest.mark.parametrize("window", [None, 100])
def test_rows_at_slots_of_their_own(window):
    slots, pads = (0, 21, 405, 37, 128), (0, 2, 0, 9, 100)
    case = Case((1500, 1500, 640, 640, 3), 1, (32, 8), 128, slots=slots, pads=pads, window=window)
    check(case, "cuda", [torch.bfloat16])


@pytest.mark.parametrize(("window", "softcap"), list(itertools.product([None, 1, 100, 1024], [None, 20.0])))
@pytest.mark.parametrize(("queries", "slot"), [(1, 70), (130, 0)])
def test_windows_and_caps(window, softcap, queries, slot):
    case = Case((1500, 640, 3), queries, (8, 2), 64, slot=slot, window=window, softcap=softcap, sinks=True)
    check(case, "cuda", [torch.bfloat16])


@pytest.mark.parametrize("queries", [1, 16, 131, 600])
def test_prompts_and_chunks(queries):
    check(Case((700, 300), queries, (8, 2), 128, pads=(0, min(queries - 1, 7))), "cuda", HALVES)


def test_single_precision_and_values_of_another_size():
    check(Case((200, 33), 1, (8, 2), 64, slot=9, window=50), "cuda", [torch.float32])
    check(Case((200, 33), 40, (8, 2), 64, value_size=32), "cuda", [torch.float32])


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(32, 8, 128), (16, 16, 64)])
@pytest.mark.parametrize("count", [700, 1024, 2500])
def test_ways_of_reading_a_chunk_agree(heads, key_heads, size, count):
    torch.manual_seed(0)
    start = cudnn.TILE + 301
    make = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(1, count, heads, size, **make).transpose(1, 2)
    keys, values = (torch.randn(start + count, key_heads, size, **make).transpose(0, 1) for _ in range(2))
    key, value = keys[None, :, start:].clone(), values[None, :, start:].clone()
    params = AttentionParams(size**-0.5)
    plain = extend_attention(query, keys, values, start, params)
    table = torch.tensor(table_row(keys, values, [keys], [values]), device="cuda")

    def by_kernels(base: int, partials: CudnnPartials | None) -> torch.Tensor:
        state = torch.tensor(pack_state(base, [start], [start], [start]), dtype=torch.int32, device="cuda")
        splits = prefix_splits(query, key, start - base)
        return branch_attention(
            query, key, value, params, table, state, splits, past=False, partials=partials
        )

    tile = cudnn.TILE
    prefix = cudnn._cudnn(query, keys[None, :, :tile], values[None, :, :tile], params.scale)
    causal = cudnn._causal_part(query, key, value, params.scale)
    assert causal.causal_queries == {700: 700, 1024: 1024, 2500: 2048}[count]
    ways = [(0, None), (tile, CudnnPartials(prefix)), (0, causal), (tile, replace(causal, prefix=prefix))]
    for base, partials in ways:
        found = by_kernels(base, partials)
        assert (found.float() - plain.float()).norm() < 8e-3 * plain.float().norm()


def test_what_is_left_to_the_library_is_measured():
    query = torch.randn(1, 32, 4100, 128, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, 8, 4100, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = cudnn._measure(query, key, value, AttentionParams(128**-0.5))
    assert found.prefix == (
        torch.cuda.get_device_capability() >= (9, 0)
    )  # twice as soon where it has such kernels
