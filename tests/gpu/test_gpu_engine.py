"""Margins and answers on a device equal `model.generate`, whichever way attention is computed, captured or not."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from helpers import config, generated, spying
from torch import nn
from word_tokenizer import tokenizer, words

from wim_kernel import WimKernel
from wim_kernel.engines.base import AttentionProbe
from wim_kernel.engines.local.attention.prompt_probe import ProbedRow, PromptProbe
from wim_kernel.engines.local.rows.decode_step import DecodeStep

OPTIONS = {
    "threshold": 0,
    "margin_style": "free",
    "margin_config": config(12),
    "answer_config": config(16, 16),
}
KINDS = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt_neox",
    "phi3",
    "gpt_oss",
    "deepseek_v3",
]


def equals_generate(reading, result) -> bool:
    notes = [list(m.token_ids) == generated(reading, m, OPTIONS["margin_config"]) for m in result.margins]
    return all([*notes, list(result.token_ids) == generated(reading, result, OPTIONS["answer_config"])])


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["auto", "parts"])
def test_margins_and_answer_equal_generate(make_kernel, kind, attention):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # falling back would pass, and say so
        kernel = make_kernel(kind, attention)
    assert kernel.engine.cache_mode == "shared"
    assert (kernel.engine.backend.name == "kernels") is (attention == "auto")
    reading = kernel.read([words(300, 1), words(1, 2), words(170, 3)])
    result = reading.ask(words(9, 4), **OPTIONS)
    assert equals_generate(reading, result)
    assert equals_generate(reading, reading.ask(words(5, 5), **OPTIONS))


def captured(kernel) -> list[DecodeStep]:
    """Those that the trial of a new kernel has left included."""
    return [graph for graph in kernel.engine.backend.passes._steps.values() if graph._graph is not None]


def test_steps_are_captured_once_and_serve_every_reading(make_kernel):
    kernel = make_kernel("llama")
    tried, decode_steps = set(captured(kernel)), set()
    for seed in range(4):
        reading = kernel.read([words(200 + 31 * seed, seed), words(90, 10 + seed)])
        assert equals_generate(reading, reading.ask(words(7, seed), **OPTIONS))
        decode_steps.update(captured(kernel))
    assert sorted(graph.size.rows for graph in decode_steps - tried) == [1, 2]


def test_hooks_are_run_and_a_changed_model_is_captured_anew(make_kernel):
    kernel = make_kernel("llama")
    reading = kernel.read([words(200), words(90, 1)])
    first = reading.ask(words(7), **OPTIONS)
    with spying(kernel.model) as spy:
        assert reading.ask(words(7), **OPTIONS).token_ids == first.token_ids
    assert len(spy.batches) > 12
    layer = kernel.model.model.layers[0]
    layer.mlp.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight * -1.5)  # another tensor
    kernel.cache.clear()
    reading = kernel.read([words(200), words(90, 1)])
    changed = reading.ask(words(7), **OPTIONS)
    assert changed.token_ids != first.token_ids
    assert equals_generate(reading, changed)


def test_a_model_that_cannot_be_captured_runs_launch_by_launch(make_kernel, monkeypatch):
    kernel = make_kernel("llama")
    tried, run = captured(kernel), kernel.engine.runner.forward

    def waiting(ids, *args, **kwargs):
        int(ids.sum())  # the host waits for the device, as some models' code does
        return run(ids, *args, **kwargs)

    monkeypatch.setattr(kernel.engine.runner, "forward", waiting)
    reading = kernel.read([words(200), words(90, 1)])
    assert equals_generate(reading, reading.ask(words(7), **OPTIONS))
    assert captured(kernel) == tried
    assert float(torch.ones(3, device="cuda").sum()) == 3.0  # the device is none the worse


@pytest.mark.invariant(7)
def test_threads_share_the_device(make_kernel):
    kernel = make_kernel("qwen2")
    readings = [kernel.read([words(150 + seed, seed), words(60, 20 + seed)]) for seed in range(4)]
    alone = [reading.ask(words(6, 9), **OPTIONS).token_ids for reading in readings]
    found: dict[int, list[tuple[int, ...]]] = {}

    def work(place: int) -> None:
        found[place] = [
            readings[(place + turn) % 4].ask(words(6, 9), **OPTIONS).token_ids for turn in range(4)
        ]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {place: [alone[(place + turn) % 4] for turn in range(4)] for place in range(4)}


def test_halves_stay_as_close_to_single_precision_as_the_model_itself(make_kernel):
    exact = make_kernel.model("llama")
    kernel = make_kernel("llama", dtype=torch.bfloat16)
    reading = kernel.read([words(900), words(500, 1)])
    result = reading.ask(words(8), threshold=0, margin_config=config(2), answer_config=config(1, 1))
    ids = torch.tensor([reading.prompt_ids(result)], device="cuda")
    prefix = kernel.cache._entries[-1].prefix
    suffix = ids[0, prefix.tokens :].tolist()
    batch = prefix.branch([prefix.tokens], len(suffix) + 1)
    batch.prompt([suffix[:-1]], len(suffix) - 1, torch.tensor([len(suffix) - 2]))
    mine = batch.step(suffix[-1:]).logits[0].float()
    with torch.inference_mode():
        kernel.engine.runner.uninstall()
        wanted, plain = exact(ids).logits[0, -1].float(), kernel.model(ids).logits[0, -1].float()
    assert (mine - wanted).norm() < 1.5 * (plain - wanted).norm()


@pytest.mark.invariant(3)
def test_layers_on_two_devices(make_kernel):
    """Each layer's keys and values live where the layer runs. (With one GPU, the other device is the CPU.)"""
    from accelerate import dispatch_model
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    two = torch.cuda.device_count() > 1
    other = torch.device("cuda:1" if two else "cpu")
    model = make_kernel.model("llama")
    if two:
        first = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers.0"], 0)
        dispatch_model(model, {**first, "model.layers.1": 1, "model.norm": 1, "lm_head": 1})
    else:  # in a device map, the CPU is where weights wait, not where they are used
        last = model.model.layers[-1].to(other)
        add_hook_to_module(last, AlignDevicesHook(execution_device=other, io_same_device=True))
    kernel = WimKernel(model, tokenizer(), attention="auto" if two else "parts")
    make_kernel.made.append(kernel)
    reading = kernel.read([words(200), words(90, 1)])
    result = reading.ask(words(7), **OPTIONS)
    prefix = kernel.cache._entries[-1].prefix
    assert [prefix.layers[layer].keys.device for layer in (0, 1)] == [torch.device("cuda:0"), other]
    alone = make_kernel("llama").read([words(200), words(90, 1)]).ask(words(7), **OPTIONS)
    assert result.token_ids == alone.token_ids
    assert [m.token_ids for m in result.margins] == [m.token_ids for m in alone.margins]


def probed(widths: list[int], at: list[int]) -> PromptProbe:
    measured = AttentionProbe((0, 40, 90), ((0, 1), (1, 0), (1, 3)))
    width = max(widths)
    rows = [
        ProbedRow(row, at[row], width - own, range(width - 3, width), measured)
        for row, own in enumerate(widths)
    ]
    return PromptProbe(rows)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_prompts_of_a_size_are_captured_at_its_second_use(make_kernel, kind):
    """Logits and attention of a replay are those of the launches before, for other prefixes and prompts in between."""
    kernel = make_kernel(kind)
    kernel.read([words(300, 1), words(170, 3)]).prefill()
    prefix, device = kernel.cache._entries[-1].prefix, torch.device("cuda")
    prompts, others = [[5, 6, 7, 8, 9], [5, 6, 7]], [[9, 8, 7, 6], [4, 3, 2]]

    def run(ids: list[list[int]], at: list[int]) -> list[torch.Tensor]:
        probe = probed([*map(len, ids)], at)
        width = max(map(len, ids))
        logits = prefix.branch(at, width).prompt(ids, width, torch.tensor([width - 3, width - 1]), 0, probe)
        return [logits, *(probe.mass(row, device) for row in (0, 1))]

    at = [prefix.tokens, 100]
    wanted = run(prompts, at)
    run(others, [150, 301])
    graphs = [item for item in kernel.engine.backend.passes._prompts.values() if item._graph is not None]
    assert len(graphs) == 1
    for found, expected in zip(run(prompts, at), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
