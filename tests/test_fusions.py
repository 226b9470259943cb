"""Fused operations inside a step: the same numbers, only inside, and the model stays as it was outside."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from wim_kernel.engines.local.attention.triton_launch import interpreted
from wim_kernel.engines.local.model.fused_ops import gated, rms_norm, rotate
from wim_kernel.engines.local.model.fusions import FusedProjections, Fusions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not interpreted(), reason="Triton is not installed, or compiles for a GPU"),
]


class Switch:
    """Says whether fused operations are wanted, and can be pickled."""

    on = True

    def __call__(self) -> bool:
        return self.on


@pytest.fixture
def fresh(tiny_model):
    """Copies of tiny models without patches."""

    def make(kind: str) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_config(tiny_model(kind).config, dtype=torch.float32).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for parameter in model.parameters():  # norms of ones would hide a forgotten weight
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() < 3e-6 * wanted.norm())


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.arange(3 * 7).view(3, 7)).logits


PATCHED = {
    "llama": {"LlamaRMSNorm", "LlamaMLP", "Linear"},
    "qwen2": {"Qwen2RMSNorm", "Qwen2MLP", "Linear"},
    "qwen3": {"Qwen3RMSNorm", "Qwen3MLP", "Linear"},
    "gemma2": {"Gemma2RMSNorm", "Linear"},
    "gemma3": {"Gemma3RMSNorm", "Linear"},
    "phi3": {"Phi3RMSNorm"},
    "cohere": {"CohereMLP", "Linear"},
    "gpt_neox": set(),
    "gpt2": set(),
}


@pytest.mark.parametrize("kind", PATCHED)
def test_a_model_gives_the_same_with_fused_operations(fresh, kind):
    model, switch = fresh(kind), Switch()
    plain = logits(model)
    fusions = Fusions(model, switch)
    fusions.install()
    fusions.install()  # once is enough
    assert {type(module).__name__ for module in fusions._patched or ()} == PATCHED[kind]
    assert alike(logits(model), plain)
    switch.on = False
    assert torch.equal(logits(model), plain)
    switch.on = True
    fusions.uninstall()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(logits(model), plain)


def test_a_rotation_of_another_kind_is_left_alone(fresh):
    import transformers.models.cohere.modeling_cohere as cohere
    import transformers.models.llama.modeling_llama as llama

    for home, name, patched in ((cohere, "cohere", False), (llama, "llama", True)):
        original = home.apply_rotary_pos_emb
        fusions = Fusions(fresh(name), Switch())
        fusions.install()
        assert (home.apply_rotary_pos_emb is not original) is patched
        fusions.uninstall()
        assert home.apply_rotary_pos_emb is original


def test_two_models_of_one_kind_share_a_rotation_until_the_last_is_gone(fresh):
    import transformers.models.llama.modeling_llama as llama

    original = llama.apply_rotary_pos_emb
    first, second = (Fusions(fresh("llama"), Switch()) for _ in range(2))
    first.install()
    second.install()
    first.uninstall()
    assert llama.apply_rotary_pos_emb is not original
    second.uninstall()
    assert llama.apply_rotary_pos_emb is original


def test_fused_projections_weights_stay_the_layers_own(fresh):
    model = fresh("llama")
    fusions = Fusions(model, Switch())
    fusions.install()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.k_proj.weight.mul_(2.0)  # written through
    changed = logits(model)
    fusions.uninstall()
    assert alike(logits(model), changed)
    fusions.install()
    attention.v_proj.weight = nn.Parameter(torch.zeros_like(attention.v_proj.weight))  # another tensor
    changed = logits(model)
    fusions.uninstall()
    assert alike(logits(model), changed)


def test_weights_stay_good_for_training(fresh):
    model = fresh("llama")
    fusions = Fusions(model, Switch())
    with torch.inference_mode():
        fusions.install()
    fusions.uninstall()
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(torch.arange(7)[None]).logits.sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    model.load_state_dict(fresh("llama").state_dict())


def test_norms_of_one_kind_may_differ(fresh):
    model = fresh("llama")
    for number, layer in enumerate(model.model.layers):
        layer.input_layernorm.variance_epsilon = 10.0**-number
    plain = logits(model)
    fusions = Fusions(model, Switch())
    fusions.install()
    assert alike(logits(model), plain)
    fusions.uninstall()


def test_threads_do_not_take_each_others_products():
    layers = [nn.Linear(8, 8) for _ in range(3)]
    joint, inputs = FusedProjections(layers), [torch.randn(3, 8) for _ in range(2)]
    with torch.inference_mode():
        wanted = [[layer(hidden) for layer in layers] for hidden in inputs]
    both, wrong = threading.Barrier(2), []

    def work(place: int) -> None:
        for _ in range(20):
            for layer, right in zip(layers, wanted[place], strict=True):
                both.wait()
                with torch.inference_mode():
                    if not torch.allclose(joint.product(layer, inputs[place]), right, atol=1e-6):
                        wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_weights_that_were_taken_apart_are_let_go():
    layers = [nn.Linear(8, 8) for _ in range(3)]
    joint, hidden = FusedProjections(layers), torch.randn(3, 8)
    layers[0].double().float()
    torch.testing.assert_close(joint.product(layers[1], hidden), layers[1](hidden))
    assert joint.weight is None


def test_joint_products_with_biases_in_any_order():
    layers = [nn.Linear(8, width) for width in (6, 2, 4)]
    hidden, other = torch.randn(3, 8), torch.randn(5, 8)
    wanted = [layer(hidden) for layer in layers]
    joint = FusedProjections(layers)
    with torch.inference_mode():
        for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
            for place in order:
                torch.testing.assert_close(joint.product(layers[place], hidden), wanted[place])
            torch.testing.assert_close(joint.product(layers[0], other), layers[0](other))
    layers[1].bias = nn.Parameter(torch.zeros(2))
    torch.testing.assert_close(joint.product(layers[1], hidden), hidden @ layers[1].weight.T)


def test_a_model_with_fused_operations_can_be_copied_and_pickled(fresh):
    model = fresh("llama")
    plain = logits(model)
    fusions = Fusions(model, Switch())
    fusions.install()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert alike(logits(other), plain)
    fusions.uninstall()


@pytest.mark.parametrize("width", [1, 16, 24, 100])
@pytest.mark.parametrize("around_one", [False, True])
def test_fused_norm_equals_the_models(width, around_one):
    hidden, weight = torch.randn(3, 5, width), torch.randn(width)
    scaled = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
    wanted = scaled * (1 + weight if around_one else weight)
    torch.testing.assert_close(
        rms_norm(hidden, weight, 1e-6, around_one=around_one), wanted, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 16), (3, 1, 24), (8, 8, 10)])
@pytest.mark.parametrize("shared", [False, True])
def test_fused_rotation_equals_the_models(heads, key_heads, size, shared):
    query, key = (
        torch.randn(2, 5, heads, size).transpose(1, 2),
        torch.randn(2, 5, key_heads, size).transpose(1, 2),
    )
    cos, sin = torch.randn(2, 1 if shared else 2, 5, size)

    def turned(item: torch.Tensor) -> torch.Tensor:
        first, second = item.chunk(2, -1)
        return item * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    for found, wanted in zip(rotate(query, key, cos, sin), (turned(query), turned(key)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_fused_gate_equals_the_models():
    gate, up = torch.randn(2, 7, 333)
    torch.testing.assert_close(gated(gate, up), nn.functional.silu(gate) * up)
