"""Products by oneDNN inside a step: the same numbers, only inside, and the model stays as it was outside."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import TinyModel
from torch import nn
from transformers import PreTrainedModel

from wim_kernel.engines.local.model import onednn as products
from wim_kernel.engines.local.model.onednn import OneDNNLinears

pytestmark = pytest.mark.skipif(not products.has_onednn(), reason="torch without oneDNN, or no x86 processor")


class Switch:
    """Says whether products are wanted, and can be pickled."""

    on = True

    def __call__(self) -> bool:
        return self.on


class Counted:
    """Counts products that went to oneDNN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[torch.Tensor] = []
        product = products.product

        def count(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            self.weights.append(weight)
            return product(rows, weight, bias)

        monkeypatch.setattr(products, "product", count)


def fresh(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without patches."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        vars(layer).pop("forward", None)
    return model


def linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    return [layer for layer in model.modules() if type(layer) is nn.Linear]


@torch.inference_mode()
def logits(model: PreTrainedModel, rows: int = 3) -> torch.Tensor:
    return model(torch.arange(rows * 7).view(rows, 7)).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # without and with biases
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_products_are_the_same(
    tiny_model: TinyModel, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counted = fresh(tiny_model(kind)), Counted(monkeypatch)
    wanted = logits(model, rows)
    patches = OneDNNLinears(model, Switch())
    patches.install()
    found = logits(model, rows)
    patches.uninstall()
    assert len(counted.weights) == len(linear_layers(model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_outside_a_step_and_after_uninstalling_the_model_multiplies_by_itself(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counted, switch = fresh(tiny_model("llama")), Counted(monkeypatch), Switch()
    wanted = logits(model)
    patches = OneDNNLinears(model, switch)
    patches.install()
    switch.on = False
    assert torch.equal(logits(model), wanted)
    patches.uninstall()
    assert torch.equal(logits(model), wanted)
    assert not counted.weights
    assert not any("forward" in vars(layer) for layer in linear_layers(model))


def test_the_output_layers_copy_follows_its_weights(tiny_model: TinyModel) -> None:
    model = fresh(tiny_model("llama"))
    patches = OneDNNLinears(model, Switch())
    patches.install()
    before = logits(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(logits(model), 2 * before)
    model.get_output_embeddings().weight = nn.Parameter(
        torch.zeros_like(model.get_output_embeddings().weight)
    )
    assert not logits(model).any()
    patches.uninstall()


def test_layers_that_someone_else_has_changed_or_of_other_types_are_left_alone(tiny_model: TinyModel) -> None:
    model = fresh(tiny_model("llama"))
    first, *_ = linear_layers(model)
    hooked = first.forward
    first.forward = lambda rows: hooked(rows) * 0
    theirs = first.forward
    patches = OneDNNLinears(model, Switch())
    patches.install()
    assert first.forward is theirs
    patches.uninstall()
    assert first.forward is theirs
    half = fresh(tiny_model("llama")).to(torch.bfloat16)
    OneDNNLinears(half, Switch()).install()
    assert not any("forward" in vars(layer) for layer in linear_layers(half))


def test_a_model_can_be_copied_and_pickled_while_it_is_patched(tiny_model: TinyModel) -> None:
    model = fresh(tiny_model("llama"))
    patches = OneDNNLinears(model, Switch())
    patches.install()
    wanted = logits(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(other), wanted)  # the copy multiplies by its own weights
    # as worker processes are sent a model; what is loaded was made on this line
    assert torch.equal(logits(pickle.loads(pickle.dumps(other))), wanted)


def test_a_model_that_trains_keeps_its_gradients(tiny_model: TinyModel) -> None:
    model, switch = fresh(tiny_model("llama")), Switch()
    OneDNNLinears(model, switch).install()
    switch.on = False
    model(torch.arange(7)[None], labels=torch.arange(7)[None]).loss.backward()
    assert all(layer.weight.grad is not None for layer in linear_layers(model))
