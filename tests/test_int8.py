"""Weights in 8 bits: exact products, rows that do not depend on each other, and a kernel as exact on them as on any."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from helpers import FREE, Loaded, TinyModel, fresh_copy, generated
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from wim_kernel import WimKernel
from wim_kernel.engines.local.model import int8_linear
from wim_kernel.engines.local.model.int8_linear import Int8Group, Int8Linear
from wim_kernel.engines.local.model.quantising import quantise

QUESTION = "Which zebra kept the ledger?"
CHUNKS = ["zebra harbour ledger night rope gull keel", "sail, brass. lamp; fog? oar crate moon", "A zebra."]


def layer(inputs: int = 96, outputs: int = 70, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(inputs, outputs, bias=bias)


def small(tiny_model: TinyModel, kind: str = "llama") -> PreTrainedModel:
    model = fresh_copy(tiny_model(kind))
    quantise(model, "int8")
    return model


def int8_layers(model: PreTrainedModel) -> list[Int8Linear]:
    return [module for module in model.modules() if isinstance(module, Int8Linear)]


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.arange(21).view(3, 7)).logits


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture(params=[True, False], ids=["bytes", "floats"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Products by VNNI, where the processor has it, and as other processors compute them."""
    if not request.param:
        monkeypatch.setattr(int8_linear, "multiplies_bytes", lambda: False)
    elif not int8_linear.multiplies_bytes():
        pytest.skip("this processor has no VNNI, or torch no oneDNN")
    return bool(request.param)


# One layer


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("rows", [1, 2, 9, 130])
@pytest.mark.parametrize("inputs", [8, 96, 1536])
def test_a_product_is_that_of_the_dequantised_weights(rows: int, inputs: int) -> None:
    plain = layer(inputs)
    small = Int8Linear(plain)
    given = torch.randn(rows, inputs) * torch.logspace(-4, 4, rows)[:, None]
    weight = small.dequantised().double()
    found, wanted = small(given), given.double() @ weight.t()
    # as a share of the products that are added up, row by row, so that rows of small magnitude count too
    largest = (given.abs().amax(1, keepdim=True).double() * weight.abs().sum(1)).norm(dim=1)
    assert bool(((found - wanted).norm(dim=1) < 2e-5 * largest).all())
    error = (small.dequantised() - plain.weight.detach()).abs().amax(1) / plain.weight.abs().amax(1)
    assert 0 < float(error.max()) < 0.5 / 127 + 1e-6


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_numbers_do_not_overflow(sign: float) -> None:
    plain = layer(1024, 40)
    with torch.no_grad():
        plain.weight.fill_(0.25)
    small = Int8Linear(plain)
    assert set(small.weight.flatten().tolist()) == {127}
    torch.testing.assert_close(small(torch.full((3, 1024), sign)), torch.full((3, 40), sign * 256))


@pytest.mark.usefixtures("each_way")
def test_zeros_give_zeros() -> None:
    plain = layer()
    with torch.no_grad():
        plain.weight[5] = 0
    small = Int8Linear(plain)
    assert not small(torch.zeros(2, 96)).any()
    assert not small(torch.randn(4, 96))[:, 5].any()


def test_a_row_does_not_depend_on_the_others(each_way: bool) -> None:
    if not each_way:
        pytest.skip("float32 rounds by the number of rows")
    small, rows = Int8Linear(layer(576, 192)), torch.randn(300, 576)
    together = small(rows)
    for some in ([7], [7, 250], list(range(7, 40))):
        assert torch.equal(small(rows[some] * 1), together[some])
    loud = torch.cat([rows[:1], 1e6 * rows[1:9]])
    assert torch.equal(small(loud)[0], together[0])


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not int8_linear.multiplies_bytes():
        pytest.skip("this processor has no VNNI, or torch no oneDNN")
    small, rows = Int8Linear(layer(576, 192, bias=True)), torch.randn(2, 5, 576)
    found = small(rows)
    monkeypatch.setattr(int8_linear, "multiplies_bytes", lambda: False)
    torch.testing.assert_close(small(rows), found, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_inputs_shape_and_dtype(dtype: torch.dtype) -> None:
    given = torch.randn(2, 3, 96, dtype=dtype)
    plain = layer(bias=True)
    wanted = plain(given.float())
    small = Int8Linear(plain).to(dtype)
    assert small.scale.dtype == torch.float32
    assert small.weight.dtype == torch.int8
    found = small(given)
    assert (found.shape, found.dtype) == ((2, 3, 70), dtype)
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_weights_that_change_are_laid_out_anew() -> None:
    small, rows = Int8Linear(layer()), torch.randn(4, 96)
    before = small(rows)
    with torch.no_grad():
        small.scale.mul_(2)
    torch.testing.assert_close(small(rows), 2 * before)
    with torch.no_grad():
        small.weight.zero_()
    assert not small(rows).any()


def test_inputs_get_their_gradients() -> None:
    small = Int8Linear(layer(bias=True))
    rows = torch.randn(4, 96, requires_grad=True)
    small(rows).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, small.dequantised().sum(0).expand(4, 96))


def test_a_state_dict_holds_plain_weights_and_takes_them() -> None:
    plain = layer(bias=True)
    small, other = Int8Linear(plain), Int8Linear(layer(bias=True))
    with torch.no_grad():
        other.weight.zero_()
    state = small.state_dict()
    assert {name: item.dtype for name, item in state.items()} == {
        "weight": torch.float32,
        "bias": torch.float32,
    }
    plain.load_state_dict(state)
    other.load_state_dict(state)
    rows = torch.randn(4, 96)
    torch.testing.assert_close(other(rows), small(rows))
    torch.testing.assert_close(plain(rows), small(rows), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Int8Linear(layer(outputs=8)).load_state_dict(layer(outputs=9).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


# A model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # without and with biases
def test_linear_layers_are_replaced_and_nothing_else(tiny_model: TinyModel, kind: str) -> None:
    plain = tiny_model(kind)
    model = small(tiny_model, kind)
    linear = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    assert [name for name, module in model.named_modules() if isinstance(module, Int8Linear)] == linear
    others = {name: item for name, item in plain.named_parameters() if name.rpartition(".")[0] not in linear}
    own = dict(model.named_parameters())
    assert others
    assert all(torch.equal(own[name], item) for name, item in others.items())
    assert 1e-3 < apart(logits(model), logits(plain)) < 0.05


def test_layers_of_one_input_are_one_product(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(tiny_model)
    counted: list[int] = []
    whole = Int8Group._all

    def count(group: Int8Group, rows: torch.Tensor) -> torch.Tensor:
        found = whole(group, rows)
        counted.append(found.shape[-1])
        return found

    monkeypatch.setattr(Int8Group, "_all", count)
    logits(model)
    block = model.model.layers[0]
    parts = [
        [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj],
        [block.self_attn.o_proj],
    ]
    parts += [[block.mlp.gate_proj, block.mlp.up_proj], [block.mlp.down_proj]]
    sizes = [sum(layer.out_features for layer in part) for part in parts]
    assert counted == sizes * model.config.num_hidden_layers + [model.config.vocab_size]
    attention = model.model.layers[0].self_attn
    rows, others = torch.randn(2, 1, 3, model.config.hidden_size)
    assert not torch.equal(attention.q_proj(rows), attention.q_proj(others))
    torch.testing.assert_close(
        attention.k_proj(rows), rows @ attention.k_proj.dequantised().t(), rtol=1e-3, atol=1e-3
    )


def test_a_model_can_be_copied_pickled_and_moved(tiny_model: TinyModel) -> None:
    model = small(tiny_model)
    wanted = logits(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(other), wanted)
    assert torch.equal(
        logits(pickle.loads(pickle.dumps(other))), wanted
    )  # what is loaded was made on this line
    half = other.to(torch.bfloat16)
    assert logits(half).dtype == torch.bfloat16
    assert apart(logits(half).float(), wanted) < 0.05


def test_a_saved_model_is_a_plain_checkpoint(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = small(tiny_model)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert apart(logits(plain), logits(model)) < 1e-3
    quantise(plain, "int8")
    assert apart(logits(plain), logits(model)) < 1e-3


def test_what_cannot_be_quantised_is_refused_with_the_reason(tiny_model: TinyModel, smollm2: Loaded) -> None:
    model = small(tiny_model)
    with pytest.raises(ValueError, match="no linear layers that weights='int8' could quantise"):
        quantise(model, "int8")
    with torch.device("meta"):
        elsewhere = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="for models on a CPU, and this one is on meta"):
        quantise(elsewhere, "int8")
    with pytest.raises(ValueError, match=r"weights is 'int8'.* or None, not 'int3'"):
        WimKernel(fresh_copy(tiny_model("llama")), smollm2[1], weights="int3")


# A kernel


@pytest.mark.slow
@pytest.mark.invariant(3)
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "lfm2"])
def test_margins_and_answer_equal_generate(tiny_model: TinyModel, smollm2: Loaded, kind: str) -> None:
    kernel = WimKernel(fresh_copy(tiny_model(kind)), smollm2[1], weights="int8")
    assert kernel.engine.cache_mode == "shared"
    reading = kernel.read(CHUNKS)
    result = reading.ask(QUESTION, **FREE, threshold=0)
    for margin in result.margins:
        assert list(margin.token_ids) == generated(reading, margin, FREE["margin_config"])
    assert list(result.token_ids) == generated(reading, result, FREE["answer_config"])


@pytest.mark.slow
def test_the_embedded_model_stays_exact_and_keeps_its_calibration(real_kernel: WimKernel) -> None:
    kernel = WimKernel.from_pretrained("embedded", device="cpu", dtype="float32", weights="int8")
    assert kernel.engine.calibration_key() == real_kernel.engine.calibration_key()
    assert kernel.engine.identity() != real_kernel.engine.identity()
    reading = kernel.read(
        ["The gull sat on the mast. ", "Elsa Brandt owned the ship Aurora. ", "It rained. "]
    )
    result = reading.ask("Who owned the ship?", **FREE, threshold=0)
    for margin in result.margins:
        assert list(margin.token_ids) == generated(reading, margin, FREE["margin_config"])
    assert list(result.token_ids) == generated(reading, result, FREE["answer_config"])
