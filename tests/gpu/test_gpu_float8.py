"""Weights in float8 on a GPU: kernels that round and scale, products, and a kernel whose steps are captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from word_tokenizer import tokenizer, words

from wim_kernel import WimKernel
from wim_kernel.engines.local.model import float8_linear
from wim_kernel.engines.local.model.float8_linear import FEW_ROWS, Float8Linear, multiplies_float8
from wim_kernel.engines.local.model.float8_ops import LARGEST, quantise_rows, scale_results

DEVICE = torch.device("cuda")

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and multiplies_float8(DEVICE)), reason="no GPU that multiplies in float8"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 96), (130, 14336)])
def test_kernels_round_and_scale_as_pytorch_does(rows: int, width: int, dtype: torch.dtype) -> None:
    given = torch.randn(rows, width + 3, device=DEVICE)[:, :width]
    given = (given * torch.logspace(-5, 5, rows, device=DEVICE)[:, None]).to(dtype)
    given[0] = 0 if rows > 1 else given[0]
    numbers, scale = quantise_rows(given)
    wanted, wanted_scale = float8_linear._quantised_rows(given)
    torch.testing.assert_close(scale, wanted_scale)
    apart = (numbers.float() - wanted.float()).abs()
    # a number half way between two may go to either
    assert bool((apart <= wanted.float().abs() / 8 + 2**-9).all())
    assert float((apart > 0).float().mean()) < 0.01
    assert float(numbers.float().abs().max()) == LARGEST
    outputs, sums = torch.rand(width, device=DEVICE), given.float().contiguous()
    torch.testing.assert_close(scale_results(sums, scale, outputs, torch.float32), sums * scale * outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 8, FEW_ROWS, FEW_ROWS + 1, 700])
@torch.no_grad()
def test_products_are_those_of_the_rounded_numbers(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(1024, 496, bias=True).to(DEVICE, dtype)
    small, given = Float8Linear(plain), torch.randn(2, rows, 1024, device=DEVICE).to(dtype)
    found = small(given)
    assert found.shape == (2, rows, 496)
    assert found.dtype == dtype
    numbers, scale = float8_linear._quantised_rows(given.view(-1, 1024))
    wanted = (numbers.float() * scale) @ small.dequantised().t() + plain.bias.float()
    error = (found.view(-1, 496).float() - wanted).norm() / wanted.norm()
    assert float(error) < 5e-3


def test_a_kernel_on_weights_in_float8_captures_its_steps(make_kernel: Any) -> None:
    model = make_kernel.model("llama", torch.bfloat16)
    kernel = WimKernel(model, tokenizer(), weights="fp8")
    assert kernel.engine.cache_mode == "shared"
    assert kernel.engine.backend.name != "parts"
    assert type(model.model.layers[0].mlp.up_proj) is Float8Linear
    reading = kernel.read([words(40), words(30)])
    first = reading.ask("Who?", threshold=0, margin_style="free")
    assert first.token_ids == reading.ask("Who?", threshold=0, margin_style="free").token_ids
    assert "forward" in vars(model.model.layers[0].mlp)  # fused
    steps = kernel.engine.backend.passes._steps.values()
    assert steps
    assert not any(step.capture_failed for step in steps)
