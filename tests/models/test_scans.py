"""Scans of recurrent layers that start from a state, and models whose own code is otherwise left as it is."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from tiny_configs import build_model
from torch import Tensor

from wim_kernel import WimKernel
from wim_kernel.engines.local.model.scans import SCAN, Scans
from wim_kernel.engines.local.model.states import StateCache, StateLayout, passing

ROWS, WIDTH, SIZE, TOKENS = 2, 6, 4, 11


def arguments(generator: torch.Generator) -> dict[str, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "hidden_states": random(ROWS, WIDTH, TOKENS),
        "dt": random(ROWS, WIDTH, TOKENS),
        "A": -random(WIDTH, SIZE).exp(),
        "B": random(ROWS, SIZE, TOKENS),
        "C": random(ROWS, SIZE, TOKENS),
        "z": random(ROWS, WIDTH, TOKENS),
        "D": random(WIDTH),
        "delta_bias": random(WIDTH),
    }


def part(given: dict[str, Tensor], tokens: slice) -> dict[str, Tensor]:
    return {name: item[..., tokens] if item.ndim == 3 else item for name, item in given.items()}


@pytest.fixture
def patched():
    """A tiny model whose scan is patched, and its scan function."""
    model = build_model("mamba")
    scans, file = Scans(model), sys.modules[type(model).__module__]
    original = getattr(file, SCAN)
    scans.install()
    yield model, getattr(file, SCAN)
    scans.uninstall()
    assert getattr(file, SCAN) is original


def test_a_scan_in_two_parts_gives_what_one_scan_gives(patched):
    model, scan = patched
    given = arguments(torch.Generator().manual_seed(0))
    kinds = {"delta_softplus": True, "return_last_state": True}
    whole, last = scan(**given, **kinds)
    first, between = scan(**part(given, slice(0, 5)), **kinds)
    layout = StateLayout.of(model.config)
    assert layout is not None
    cache = StateCache(layout, 5, {"0.recurrent.0": between})
    with passing(cache):
        cache.get_recurrent_state(0)
        second, end = scan(**part(given, slice(5, TOKENS)), **kinds)
        again, _ = scan(**part(given, slice(5, TOKENS)), **kinds)  # another layer, which has fetched no state
    assert torch.allclose(torch.cat([first, second], -1), whole, atol=1e-5)
    assert torch.allclose(end, last, atol=1e-5)
    assert not torch.allclose(again, second, atol=1e-3)


def test_scans_of_other_code_start_from_zeros(patched):
    _, scan = patched
    given = arguments(torch.Generator().manual_seed(1))
    assert torch.equal(scan(**given), scan.original(**given))


def test_a_function_is_restored_when_the_last_model_lets_it_go(monkeypatch):
    models = [build_model("mamba"), build_model("mamba")]
    file = sys.modules[type(models[0]).__module__]
    original, scans = getattr(file, SCAN), [Scans(model) for model in models]
    original = getattr(original, "original", original)  # models of other tests may still hold it
    monkeypatch.setattr(file, SCAN, original)
    for patch in (*scans, scans[0]):  # the same model twice counts once
        patch.install()
    scans[0].uninstall()
    assert getattr(file, SCAN) is not original
    scans[1].uninstall()
    assert getattr(file, SCAN) is original


@pytest.mark.invariant(3)
def test_the_same_model_generates_as_before_beside_a_kernel(plain_tokenizer):
    model = build_model("jamba")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    before = copy.deepcopy(model).generate(ids, max_new_tokens=5, do_sample=False)
    reading = WimKernel(model, plain_tokenizer).read([" gull moon rope", " zebra sea"])
    reading.ask("Which zebra?", threshold=0, margin_tokens=3, answer_tokens=3)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), before)
