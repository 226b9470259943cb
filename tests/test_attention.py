"""Attention in parts equals attention in one piece."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wim_kernel.engines.local.attention.parts import (
    AttentionParams,
    Mask,
    Merge,
    Part,
    attend,
    extend_attention,
    nested_parts,
)


def whole(query, key, value, params, mask):
    """Plain attention, float64: query (heads, M, D), key (key heads, N, D), mask (M, N)."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0).double(), value.repeat_interleave(groups, 0).double()
    scores = query.double() @ key.transpose(1, 2) * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if params.sinks is not None:
        sinks = params.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ value
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("window", [None, 1, 5, 16, 1000])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(("start", "count"), [(0, 7), (9, 1), (9, 12), (40, 3)])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (6, 2, 24), (8, 1, 64)])
def test_extending_equals_attention_over_everything(
    window, softcap, sinks, start, count, heads, key_heads, size
):
    generator = torch.Generator().manual_seed(start + count + heads)
    end = start + count
    query = torch.randn(heads, count, size, generator=generator)
    key, value = torch.randn(2, key_heads, end, size, generator=generator)
    params = AttentionParams(
        size**-0.5, window, softcap, torch.randn(heads, generator=generator) if sinks else None
    )
    distance = torch.arange(start, end)[:, None] - torch.arange(end)[None]
    mask = (distance >= 0) & (distance < (window or end + 1))
    out = extend_attention(query[None], key, value, start, params)
    assert out.shape == (1, count, heads, size)
    torch.testing.assert_close(
        out[0].transpose(0, 1).double(), whole(query, key, value, params, mask), atol=2e-5, rtol=2e-5
    )


def test_keys_and_values_may_have_different_head_sizes():
    query, key, value = torch.randn(4, 3, 24), torch.randn(2, 10, 24), torch.randn(2, 10, 16)
    out = extend_attention(query[None], key, value, 7, AttentionParams(0.2))
    mask = torch.arange(7, 10)[:, None] >= torch.arange(10)[None]
    torch.testing.assert_close(
        out[0].transpose(0, 1).double(),
        whole(query, key, value, AttentionParams(0.2), mask),
        atol=2e-5,
        rtol=2e-5,
    )


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_query_that_sees_no_key_weighs_nothing(cap):
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    mask = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    mask[..., 2, :] = False
    out, lse = attend(query, key, value, AttentionParams(0.3, softcap=cap), mask=Mask(mask))
    assert torch.isinf(lse[:, :, 2]).all()
    assert torch.isfinite(lse[:, :, [0, 1, 3]]).all()
    other, weight = attend(query, key, value, AttentionParams(0.3, softcap=cap))
    merge = Merge(other.clone(), weight.clone())
    merge.add(out, lse)
    torch.testing.assert_close(merge.out[:, :, 2], other[:, :, 2])  # nothing was added to that query
    torch.testing.assert_close(merge.out[:, :, 0], other[:, :, 0])  # the same part twice is that part


@given(st.lists(st.integers(0, 40), max_size=12).map(lambda found: sorted(found, reverse=True)))
@settings(max_examples=200, deadline=None)
def test_nested_parts_cover_each_prefix_once(lengths):
    parts = nested_parts(lengths)
    for row, length in enumerate(lengths):
        seen = [position for part in parts if row < part.rows for position in range(part.start, part.end)]
        assert seen == list(range(length))
    assert all(part.end > part.start for part in parts)


def test_nested_parts_want_sorted_lengths():
    assert nested_parts([5, 5, 2]) == [Part(0, 2, 3), Part(2, 5, 2)]
    with pytest.raises(ValueError, match="sorted"):
        nested_parts([2, 5])


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("keys", [1023, 1024, 1025, 1031])
@pytest.mark.parametrize("masked", [False, True])
def test_keys_cut_over_threads_give_the_same(monkeypatch, threads, keys, masked):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    query, key, value = torch.randn(3, 1, 6, 16), torch.randn(3, 1, keys, 16), torch.randn(3, 1, keys, 16)
    seen = torch.tensor([keys, keys - 1, 700, 513, 1, 0])
    allowed = torch.arange(keys) < (seen[:, None] if masked else torch.tensor(keys))
    out, lse = attend(
        query, key, value, AttentionParams(0.3), mask=Mask(allowed[None, None]) if masked else None
    )
    expected = whole(query[:, 0], key[:, 0], value[:, 0], AttentionParams(0.3), allowed.expand(6, keys))
    assert torch.isfinite(out).all()
    sees = 5 if masked else 6  # the last query sees nothing
    torch.testing.assert_close(out[:, 0, :sees].double(), expected[:, :sees], atol=2e-5, rtol=2e-5)
    scores = (query[:, 0].double() @ key[:, 0].double().transpose(1, 2) * 0.3).masked_fill(
        ~allowed, -torch.inf
    )
    torch.testing.assert_close(lse[:, 0].double(), scores.logsumexp(-1), atol=2e-5, rtol=2e-5)


@dataclass(frozen=True)
class BlockParams(AttentionParams):
    """Attention within blocks of ``block`` positions: another kind of visibility."""

    block: int = 4

    def visible(self, query_positions, key_positions):
        return (query_positions >= key_positions) & (
            query_positions // self.block == key_positions // self.block
        )

    def first_visible(self, position):
        return position // self.block * self.block

    def is_plain(self, end):
        return end <= self.block

    @property
    def mask_key(self):
        return self.block


@pytest.mark.parametrize("params", [AttentionParams(1.0), AttentionParams(1.0, window=3), BlockParams(1.0)])
def test_params_say_the_same_in_every_form(params):
    positions = torch.arange(12)
    visible = params.visible(positions[:, None], positions[None])
    for position in range(12):
        seen = range(params.first_visible(position), position + 1)
        assert visible[position].nonzero()[:, 0].tolist() == list(seen)
    for end in range(1, 13):
        plain = visible[:end, :end].equal(torch.ones(end, end, dtype=torch.bool).tril())
        assert plain or not params.is_plain(end)


@pytest.mark.parametrize("start", [0, 3, 4, 9])
def test_extending_follows_the_visibility_of_a_subclass(start):
    params, end = BlockParams(0.3), start + 6
    query, key, value = torch.randn(4, 6, 8), torch.randn(2, end, 8), torch.randn(2, end, 8)
    mask = params.visible(torch.arange(start, end)[:, None], torch.arange(end)[None])
    out = extend_attention(query[None], key, value, start, params)
    expected = whole(query, key, value, params, mask)
    torch.testing.assert_close(out[0].transpose(0, 1).double(), expected, atol=2e-5, rtol=2e-5)
