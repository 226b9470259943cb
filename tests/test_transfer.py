"""Copies through two small buffers, in pieces; on a device without streams, so that the logic is all there is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wim_kernel.engines.local.prefix.transfer import Transfer, copy_pairs, to_host

CPU = torch.device("cpu")
SIZES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.integers(1, 5)), max_size=6)


@settings(deadline=None)
@given(
    sizes=SIZES,
    block_bytes=st.sampled_from([8, 24, 64, 4096]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_byte_arrives_whatever_the_sizes(sizes, block_bytes, dtype):
    sources = [torch.randn(size).to(dtype) for size in sizes]
    targets = [torch.full(size, torch.nan, dtype=dtype) for size in sizes]
    Transfer(CPU, block_bytes).copy(list(zip(sources, targets, strict=True)))
    assert all(torch.equal(found, wanted) for found, wanted in zip(targets, sources, strict=True))


def test_copies_of_non_contiguous_tensors():
    source = torch.randn(5, 30, 8).transpose(0, 1)
    buffer = torch.zeros(40, 5, 8)
    copy_pairs([(source, buffer[:30]), (source.transpose(0, 1)[:, :10], buffer.transpose(0, 1)[:, 30:])])
    assert torch.equal(buffer, torch.cat([source, source[:10]]))


def test_a_copy_is_the_callers_own():
    sources = [torch.randn(3, 7)[:, :4], torch.randn(2)]
    found = to_host(sources)
    assert all(torch.equal(copy, source) for copy, source in zip(found, sources, strict=True))
    assert all(copy.is_contiguous() for copy in found)
    found[0].zero_()
    assert sources[0].abs().sum() > 0


@pytest.mark.parametrize("target", [torch.zeros(4), torch.zeros(1), torch.zeros(3, dtype=torch.int32)])
def test_other_shapes_and_types_are_refused(target):
    with pytest.raises(RuntimeError, match="into"):
        copy_pairs([(torch.zeros(3), target)])


def test_buffers_that_were_first_used_for_a_model_serve_everybody():
    transfer, source = Transfer(CPU, 64), torch.randn(100)
    with torch.inference_mode():
        transfer.copy([(source, torch.empty(100))])
    target = torch.empty(100)
    transfer.copy([(source, target)])
    assert torch.equal(source, target)
