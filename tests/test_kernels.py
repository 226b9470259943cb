"""The kernels over a shared prefix, interpreted on the CPU, equal attention written out. On a GPU: tests/gpu."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, check, falling

from wim_kernel.engines.local.attention.block_sizes import Blocks, Shape, own_blocks, prefix_blocks
from wim_kernel.engines.local.attention.triton_launch import interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not interpreted(), reason="Triton is not installed, or compiles for a GPU"),
]


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33])
def test_lengths_around_the_edges_of_blocks(length, splits):
    check(Case((length, length // 2, 0), splits=splits if length else 0, slot=3), "cpu", [torch.float32])


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (8, 1), (7, 1), (5, 5)])
@pytest.mark.parametrize(("size", "value_size"), [(16, None), (24, None), (40, 16)])
def test_groups_and_sizes_of_heads(heads, size, value_size):
    case = Case((40, 21), queries=3, heads=heads, size=size, value_size=value_size, slot=5, pads=(0, 2))
    check(case, "cpu", [torch.float32])


@pytest.mark.parametrize("window", [None, 1, 7, 16, 50, 1000])
@pytest.mark.parametrize(("queries", "slot"), [(1, 0), (1, 9), (19, 0), (5, 9)])
def test_windows(window, queries, slot):
    check(Case((60, 33, 2), queries=queries, slot=slot, window=window), "cpu", [torch.float32])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("slot", [0, 4])
def test_caps_and_sinks(softcap, sinks, slot):
    check(Case((35, 0), queries=2, slot=slot, softcap=softcap, sinks=sinks), "cpu", [torch.float32])


@pytest.mark.parametrize("window", [None, 1, 7, 50])
@pytest.mark.parametrize("queries", [1, 4])
def test_rows_at_slots_of_their_own(window, queries):
    case = Case((60, 33, 33, 0), queries, slots=(0, 21, 5, 37), pads=(0, 2, 0, 9), window=window)
    check(case, "cpu", [torch.float32])


def test_padding_is_never_read():
    check(Case((20, 20, 20), queries=9, pads=(0, 4, 8)), "cpu", [torch.float32])
    check(Case((20, 20, 20), slot=9, pads=(0, 4, 9)), "cpu", [torch.float32])


def test_halves():  # the interpreter has no arithmetic in bfloat16
    check(Case(falling(200, 5), queries=4, slot=17), "cpu", [torch.float16])


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    queries=st.integers(1, 20),
    past=st.integers(0, 30),
    window=st.none() | st.integers(1, 60),
    seed=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_any_rows(lengths, queries, past, window, seed):
    pads = tuple((7 * row + seed) % (past + 1) for row in range(len(lengths)))
    case = Case(tuple(sorted(lengths, reverse=True)), queries, (6, 2), slot=past, pads=pads, window=window)
    check(case, "cpu", [torch.float32])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize("queries", [1, 128, 4096])
def test_blocks_fit_registers_and_shared_memory(itemsize, size, rows, queries):
    shape = Shape(rows, queries, 8, 4, size, itemsize)
    blocks: list[Blocks] = [prefix_blocks(shape), own_blocks(shape)]
    width = 1 << (size - 1).bit_length()
    for block in blocks:
        assert block.queries >= 16
        assert block.keys >= 16
        assert (
            block.queries * width <= 128 * block.warps * 32 // 2
        )  # accumulators, at most 64 registers a thread
        shared = block.stages * block.keys * 2 * width * itemsize + block.queries * width * itemsize
        assert shared <= 227 * 1024
