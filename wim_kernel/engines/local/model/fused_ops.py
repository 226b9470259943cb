"""RMS norm, rotary positions and the SiLU gate, each as one Triton kernel."""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,index,operator,arg-type,untyped-decorator"
from __future__ import annotations

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.triton_launch import on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - triton comes with every CUDA build of torch
    triton = None

if triton is not None:

    @triton.jit
    def _rms_norm(
        source, weight, out, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
        AROUND_ONE: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, BLOCK)
        mask = (row[:, None] < rows) & (column[None, :] < WIDTH)
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weight + column, mask=column < WIDTH, other=0.0)
        x = x * tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
        if AROUND_ONE:
            y = x * (1.0 + w.to(tl.float32))[None, :]
        else:
            y = x.to(out.dtype.element_ty) * w[None, :]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)

    @triton.jit
    def _rotate_heads(
        source, out, s_row, s_head, s_token, cos, sin, c_row, c_token, row, token, tokens, heads,
        HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    ):  # fmt: skip
        head = tl.arange(0, HEADS)[:, None]
        d = tl.arange(0, BLOCK)[None, :]
        mask = (head < heads) & (d < HALF)
        at = source + row * s_row + token * s_token + head * s_head + d
        first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
        angle = row * c_row + token * c_token + d
        cos1 = tl.load(cos + angle, mask=d < HALF, other=0.0).to(tl.float32)
        cos2 = tl.load(cos + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
        sin1 = tl.load(sin + angle, mask=d < HALF, other=0.0).to(tl.float32)
        sin2 = tl.load(sin + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
        at = out + ((row * tokens + token) * heads + head) * (2 * HALF) + d
        tl.store(at, (first * cos1 - second * sin1).to(out.dtype.element_ty), mask=mask)
        tl.store(at + HALF, (second * cos2 + first * sin2).to(out.dtype.element_ty), mask=mask)

    @triton.jit
    def _rotate(
        query, key, to_query, to_key, q_row, q_head, q_token, k_row, k_head, k_token, cos, sin, c_row, c_token,
        tokens, heads, key_heads, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
        KEY_HEADS: tl.constexpr,
    ):  # fmt: skip
        row = (tl.program_id(0) // tokens).to(tl.int64)
        token = (tl.program_id(0) % tokens).to(tl.int64)
        _rotate_heads(
            query, to_query, q_row, q_head, q_token, cos, sin, c_row, c_token, row, token, tokens, heads,
            HALF, BLOCK, HEADS,
        )  # fmt: skip
        _rotate_heads(
            key, to_key, k_row, k_head, k_token, cos, sin, c_row, c_token, row, token, tokens, key_heads,
            HALF, BLOCK, KEY_HEADS,
        )  # fmt: skip

    @triton.jit
    def _gate(gate, up, out, count, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(gate + at, mask=at < count, other=0.0).to(tl.float32)
        y = tl.load(up + at, mask=at < count, other=0.0)
        x = (x * tl.sigmoid(x)).to(y.dtype)
        tl.store(out + at, (x * y).to(out.dtype.element_ty), mask=at < count)


def rms_norm(source: Tensor, weight: Tensor, eps: float, *, around_one: bool) -> Tensor:
    """Root mean square norm over the last dimension of a contiguous tensor.

    Args:
        source: the input, contiguous.
        weight: one weight for each element of the last dimension.
        eps: number added to the mean of squares.
        around_one: whether the factor is one plus the weight (Gemma).
    """
    width = source.shape[-1]
    out, rows, block = torch.empty_like(source), source.numel() // width, 1 << (width - 1).bit_length()
    rows_per_block = max(1, min(16, 1024 // block))
    with on_device(source.device):
        _rms_norm[(triton.cdiv(rows, rows_per_block),)](
            source, weight, out, rows, eps, WIDTH=width, BLOCK=block, ROWS=rows_per_block, AROUND_ONE=around_one,
            num_warps=8 if block >= 2048 else 4,
        )  # fmt: skip
    return out


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions, each head in two halves: query (B, H, M, D), key (B, K, M, D), cos and sin (B or 1, M, D)."""
    (rows, heads, tokens, size), key_heads = query.shape, key.shape[1]
    to_query = query.new_empty(rows, tokens, heads, size).transpose(1, 2)
    to_key = key.new_empty(rows, tokens, key_heads, size).transpose(1, 2)
    c_row = cos.stride(0) if cos.shape[0] == rows else 0
    half = size // 2
    with on_device(query.device):
        _rotate[(rows * tokens,)](
            query, key, to_query, to_key, *query.stride()[:3], *key.stride()[:3], cos, sin, c_row, cos.stride(1),
            tokens, heads, key_heads, HALF=half, BLOCK=1 << (half - 1).bit_length(),
            HEADS=1 << (heads - 1).bit_length(), KEY_HEADS=1 << (key_heads - 1).bit_length(), num_warps=4,
        )  # fmt: skip
    return to_query, to_key


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, of contiguous tensors of the same shape."""
    out, count = torch.empty_like(up), up.numel()
    with on_device(up.device):
        _gate[(triton.cdiv(count, 1024),)](gate, up, out, count, BLOCK=1024, num_warps=4)
    return out
