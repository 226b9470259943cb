"""Weights in float8: products of rounded numbers, rows that do not depend on each other, where they are refused.

On a CPU the same numbers are multiplied in float32. On a GPU: tests/gpu.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from helpers import Loaded, TinyModel, fresh_copy
from torch import nn

from wim_kernel import WimKernel
from wim_kernel.engines.local.attention.triton_launch import interpreted
from wim_kernel.engines.local.model import float8_linear
from wim_kernel.engines.local.model.float8_linear import Float8Linear
from wim_kernel.engines.local.model.fusions import Fusions
from wim_kernel.engines.local.model.quantising import quantise


def layer(inputs: int = 96, outputs: int = 64, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Inputs with gradients would be multiplied by the dequantised weights."""
    with torch.no_grad():
        yield


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets models on a CPU have weights in float8, which are multiplied in float32 there."""
    monkeypatch.setattr("wim_kernel.engines.local.model.quantising._check_devices", lambda *_: None)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_the_rounded_numbers(bias: bool) -> None:
    plain = layer(bias=bias)
    small = Float8Linear(plain)
    given = torch.randn(5, 96) * torch.logspace(-4, 4, 5)[:, None]
    rounded, scale = float8_linear._quantised_rows(given)
    wanted = (rounded.double() * scale) @ small.dequantised().double().t()
    wanted = wanted if plain.bias is None else wanted + plain.bias
    torch.testing.assert_close(small(given).double(), wanted, rtol=1e-4, atol=1e-5)
    apart = (small(given) - plain(given)).norm(dim=1) / plain(given).norm(dim=1)
    assert 1e-3 < float(apart.max()) < 0.06  # a sixteenth of a number at most, of weights and of inputs


def test_a_row_does_not_depend_on_the_others() -> None:
    small, given = Float8Linear(layer()), torch.randn(7, 96)
    alone = torch.cat([small(row[None]) for row in given])
    torch.testing.assert_close(small(given * 1), alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(small(torch.zeros(2, 96)), torch.zeros(2, 64))
    assert small(torch.zeros(0, 96)).shape == (0, 64)


def test_sizes_that_matrix_units_do_not_take_stay_as_they_are(
    tiny_model: TinyModel, everywhere: None
) -> None:
    model = fresh_copy(tiny_model("llama"))
    odd = model.model.layers[0].mlp.down_proj = nn.Linear(
        model.config.intermediate_size, model.config.hidden_size + 8
    )
    quantise(model, "fp8")
    block = model.model.layers[1]
    assert type(block.self_attn.q_proj) is type(block.mlp.up_proj) is Float8Linear
    assert model.model.layers[0].mlp.down_proj is odd
    assert type(model.lm_head) is nn.Linear


def test_weights_of_one_input_are_one_tensor_and_survive_copies_and_dtypes(
    tiny_model: TinyModel, everywhere: None
) -> None:
    model = fresh_copy(tiny_model("llama"))
    quantise(model, "fp8")
    ids = torch.arange(12)[None]
    wanted = model(ids).logits
    block = model.model.layers[0].mlp
    storages = {part.weight.untyped_storage().data_ptr() for part in (block.gate_proj, block.up_proj)}
    assert len(storages) == 1
    other = copy.deepcopy(model)
    assert torch.equal(other(ids).logits, wanted)
    other.model.layers[0].self_attn.q_proj.scale.mul_(2)
    assert not torch.equal(other(ids).logits, wanted)
    assert torch.equal(model(ids).logits, wanted)
    half = copy.deepcopy(model).bfloat16()
    assert half.model.layers[0].self_attn.q_proj.weight.dtype == torch.float8_e4m3fn
    assert float((half(ids).logits.float() - wanted).norm() / wanted.norm()) < 0.2


def test_saved_weights_are_plain(tiny_model: TinyModel, everywhere: None) -> None:
    model = fresh_copy(tiny_model("llama"))
    quantise(model, "fp8")
    plain = fresh_copy(tiny_model("llama"))
    plain.load_state_dict(model.state_dict())
    found = plain.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(found, model.model.layers[0].mlp.up_proj.dequantised())


def test_a_kernel_on_weights_in_float8(tiny_model: TinyModel, smollm2: Loaded, everywhere: None) -> None:
    kernel = WimKernel(fresh_copy(tiny_model("llama")), smollm2[1], weights="fp8")
    assert kernel.engine.cache_mode == "shared"
    reading = kernel.read(["zebra harbour ledger", "sail, brass. lamp"])
    result = reading.ask("Who?", threshold=0, margin_style="free")
    ids = torch.tensor([list(reading.prompt_ids(result))])
    likeliest = kernel.model(ids).logits[0, -1].topk(20).indices.tolist()
    assert result.token_ids[0] in likeliest  # rounding makes attention by parts give slightly other numbers


def test_a_model_on_a_cpu_is_refused_with_the_reason(tiny_model: TinyModel, smollm2: Loaded) -> None:
    with pytest.raises(ValueError, match=r"weights='fp8' is for models on GPUs .* this one is on cpu"):
        WimKernel(fresh_copy(tiny_model("llama")), smollm2[1], weights="fp8")


@pytest.mark.skipif(not interpreted(), reason="Triton is not installed, or compiles for a GPU")
def test_small_operations_are_fused_around_weights_in_float8(tiny_model: TinyModel, everywhere: None) -> None:
    model = fresh_copy(tiny_model("llama"))
    quantise(model, "fp8")
    fusions = Fusions(model, enabled=lambda: True)
    fusions.install()
    try:
        block = model.model.layers[0]
        assert "forward" in vars(block.mlp)
        assert "forward" in vars(block.input_layernorm)
    finally:
        fusions.uninstall()
