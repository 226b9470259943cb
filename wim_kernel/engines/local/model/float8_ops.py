"""Rows as numbers in float8, and the scales of a product of such numbers, each as one Triton kernel."""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,index,operator,arg-type,untyped-decorator"
from __future__ import annotations

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.block_sizes import power
from wim_kernel.engines.local.attention.triton_launch import on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - triton comes with every CUDA build of torch
    triton = None

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Largest number in e4m3."""
SMALLEST = 1e-12
"""In place of zero, to divide by."""

if triton is not None:

    @triton.jit
    def _quantise_rows(
        source, out, scales, s_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr,
        LEAST: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        x = tl.load(source + row * s_row + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(x), 0), LEAST) / MOST
        x = tl.minimum(tl.maximum(x / scale, -MOST), MOST)
        tl.store(out + row * WIDTH + column, x.to(out.dtype.element_ty), mask=column < WIDTH)
        tl.store(scales + row, scale)

    @triton.jit
    def _scale_results(source, row_scales, scales, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < WIDTH
        x = tl.load(source + row * WIDTH + column, mask=mask, other=0.0)
        x = x * tl.load(row_scales + row) * tl.load(scales + column, mask=mask, other=0.0)
        tl.store(out + row * WIDTH + column, x.to(out.dtype.element_ty), mask=mask)


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, K) as numbers in float8, (M, K), and the scale of each row, (M, 1) in float32."""
    count, width = rows.shape
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(count, width, dtype=FLOAT8, device=rows.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=rows.device)
    block = power(width)
    with on_device(rows.device):
        _quantise_rows[(count,)](
            rows, out, scales, rows.stride(0), WIDTH=width, BLOCK=block, MOST=LARGEST, LEAST=SMALLEST,
            num_warps=min(16, max(4, block // 1024)),
        )  # fmt: skip
    return out, scales


def scale_results(sums: Tensor, row_scale: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``sums * row_scale * scale`` in ``dtype``, of (M, N) in float32, (M, 1) and (N,)."""
    count, width = sums.shape
    out = torch.empty(count, width, dtype=dtype, device=sums.device)
    with on_device(sums.device):
        _scale_results[(count, triton.cdiv(width, 1024))](
            sums, row_scale, scale, out, WIDTH=width, BLOCK=1024, num_warps=4
        )
    return out
