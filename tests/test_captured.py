"""Steps over fixed buffers, with the next one under way: the same text, whoever shares them and whoever leaves.

On the CPU, where kernels are interpreted and a step goes through the model's code at each run. On a GPU: tests/gpu.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest
import torch
from helpers import config, generated, spying

from wim_kernel import Frame, Prompts, WimKernel
from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.base import Branch
from wim_kernel.engines.local import engine
from wim_kernel.engines.local.attention.parts import AttentionParams, attend
from wim_kernel.engines.local.attention.triton_launch import interpreted
from wim_kernel.engines.local.backends import choose, cudnn, triton_backend
from wim_kernel.engines.local.backends.choose import choose_backend
from wim_kernel.engines.local.rows.base import StepOutput
from wim_kernel.engines.local.rows.cuda_graphs import CapturedPasses
from wim_kernel.engines.local.rows.decode_step import DecodeStep, StepSize
from wim_kernel.engines.local.rows.triton_rows import TritonRows
from wim_kernel.text.run_text import Text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("large_blocks"),
    pytest.mark.skipif(not interpreted(), reason="Triton is not installed, or compiles for a GPU"),
]

CHUNKS = ["The gull sat on the mast.", "Elsa Brandt owned the ship, they say, all of it.", "Nobody else did."]
FRAME = Frame(
    "Read.", "", "\n"
)  # and short prompts: a token costs the interpreter as much as a thousand cost a GPU
PROMPTS = Prompts(question="\n{question}", margin="\nCopy.", answer="\n{question}", notes="\n{margins}")
BRIEF = {
    "margin_style": "free",
    "margin_config": config(3),
    "answer_config": config(3),
    "prompts": PROMPTS,
    "threshold": 0,
    "relevance": "likelihood",  # in the pass of the margins' prompts; the default makes passes of its own
}


FUSED = ("llama", "gemma3")
"""Kinds that run with fused operations. They have tests of their own, and cost the interpreter half its time."""


@pytest.fixture(scope="module")
def kernels(tiny_model, smollm2):
    """Kernels that use the kernels, on tiny models, made once each."""
    made: dict[str, WimKernel] = {}

    def get(kind: str) -> WimKernel:
        if kind not in made:
            made[kind] = WimKernel(tiny_model(kind), smollm2[1], attention="kernels", frame=FRAME)
            if kind not in FUSED:
                made[kind].engine.runner.unfuse()
        made[kind].cache.clear()
        return made[kind]

    yield get
    for kernel in made.values():
        kernel.engine.runner.uninstall()


@pytest.mark.invariant(3)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt_oss", "deepseek_v3"])
def test_margins_and_answer_equal_generate(kernels, kind):
    kernel = kernels(kind)
    assert kernel.engine.cache_mode == "shared"
    reading = kernel.read(CHUNKS)
    result = reading.ask("Who owned the ship?", **BRIEF)
    for margin in result.margins:
        assert list(margin.token_ids) == generated(reading, margin, BRIEF["margin_config"])
    assert list(result.token_ids) == generated(reading, result, BRIEF["answer_config"])


class Watched:
    """Counts what steps did: launched with tokens, or on the heels of the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded, self.run = [], 0
        load, run = DecodeStep.load, DecodeStep.run

        def counting_load(graph, batch, table, numbers):
            self.loaded.append(graph.size.rows)
            load(graph, batch, table, numbers)

        def counting_run(graph):
            self.run += 1
            return run(graph)

        monkeypatch.setattr(DecodeStep, "load", counting_load)
        monkeypatch.setattr(DecodeStep, "run", counting_run)


def branches(kernel: WimKernel, prefix, new: list[int], at: list[int] | None = None) -> list[Branch]:
    texts = ["Who owned the ship?", "Where did the gull sit?", "Why?", "Which mast was it, then?"]
    ends = at or [prefix.tokens, prefix.tokens - 5, 7, 3]
    return [
        Branch(end, (Text(text),), "Answer:", generation=config(count, count))
        for end, text, count in zip(ends, texts, new, strict=False)
    ]


def prefix_of(kernel: WimKernel):
    reading = kernel.read(CHUNKS)
    reading.prefill()
    return kernel.cache._entries[-1].prefix


def decoded(kernel: WimKernel, prefix, asked: list[Branch]) -> list[tuple[int, ...]]:
    found = {}
    for step in kernel.engine.decode(prefix, asked):
        for progress in step:
            if progress.done is not None:
                found[progress.branch] = progress.done.token_ids
    return [found[index] for index in range(len(asked))]


def test_steps_run_ahead_and_none_is_wasted(kernels, monkeypatch):
    kernel = kernels("narrow")
    prefix, watched = prefix_of(kernel), Watched(monkeypatch)
    together = decoded(kernel, prefix, branches(kernel, prefix, [4, 4, 4]))
    assert watched.loaded == [4]  # one load, then each step follows on the one before
    assert watched.run == 3  # the first token comes from the prompt
    for index, branch in enumerate(branches(kernel, prefix, [4, 4, 4])):
        assert decoded(kernel, prefix, [branch]) == [together[index]]


def test_steps_shrink_as_rows_end(kernels, monkeypatch):
    kernel = kernels("narrow")
    prefix = prefix_of(kernel)
    asked = branches(kernel, prefix, [6, 2, 4, 3])
    alone = [decoded(kernel, prefix, [branch])[0] for branch in asked]
    watched = Watched(monkeypatch)
    assert decoded(kernel, prefix, asked) == alone
    assert watched.loaded == [4, 2, 1]  # the step shrinks with its rows


def test_rows_with_other_tokens_than_the_likeliest_are_not_run_ahead(kernels, monkeypatch):
    kernel = kernels("narrow")
    prefix, watched = prefix_of(kernel), Watched(monkeypatch)
    asked = branches(kernel, prefix, [5, 5])
    asked[0].generation.repetition_penalty = 5.0
    found = decoded(kernel, prefix, asked)
    assert watched.loaded == [2] * 4
    assert watched.run == 4
    assert found[1] == decoded(kernel, prefix, asked[1:])[0]
    reference = WimKernel(kernel.model, kernel.tokenizer, attention="parts", frame=FRAME)
    assert found == decoded(reference, prefix_of(reference), asked)


def test_batches_on_two_prefixes_share_a_graph(kernels):
    kernel = kernels("narrow")
    first, other = prefix_of(kernel), kernel.read(["Fog lay on the harbour for nine nights."])
    other.prefill()
    second = kernel.cache._entries[-1].prefix
    assert first is not second
    asked = branches(kernel, first, [5, 5])
    others = branches(kernel, second, [3, 3], [second.tokens, 4])
    wanted = decoded(kernel, first, asked), decoded(kernel, second, others)
    both = zip_longest(kernel.engine.decode(first, asked), kernel.engine.decode(second, others), fillvalue=[])
    found: list[dict[int, tuple[int, ...]]] = [{}, {}]
    for steps in both:
        for each, step in zip(found, steps, strict=True):
            each.update({item.branch: item.done.token_ids for item in step if item.done})
    assert tuple([each[0], each[1]] for each in found) == wanted


@pytest.mark.invariant(3)
def test_joint_steps_equal_single_steps(kernels):
    """By hand: what each of them is told is what it is told alone, also where a step of one is under way already."""
    kernel = kernels("narrow")
    prefix = prefix_of(kernel)

    asked = ([prefix.tokens, 5], [[17, 18, 19], [20]], 2), ([9], [[23, 24]], 0)
    alone = [begun(prefix, lengths, prompts, steps + 4)[1] for lengths, prompts, steps in asked]
    batches, found = zip(*(begun(prefix, *each) for each in asked), strict=True)
    assert batches[0].batch_key == batches[1].batch_key
    for turn in range(4):
        wanted = [steps[-1].argmax for steps in found]
        if turn == 2:  # one of them goes alone for a step, and the one behind it is under way
            found[0].append(batches[0].step(wanted[0], ahead=True))
            assert batches[0]._next_step is not None
            wanted = [found[0][-1].argmax, wanted[1]]
        for steps, batch, state in zip(
            found, batches, batches[0].step_together(list(zip(batches, wanted, strict=True))), strict=True
        ):
            steps.append(state)
            batch.advance()
    for steps, wanted in zip(found, alone, strict=True):
        for mine, other in zip(steps, wanted, strict=False):
            assert mine.argmax == other.argmax
            torch.testing.assert_close(mine.logits, other.logits, rtol=1e-4, atol=1e-4)


def prefixes_of(kernel: WimKernel) -> list:
    """Prefixes of three lengths."""
    prefixes = []
    for text in ("Fog lay on the harbour for nine nights.", "The lamp was lit at dusk. " * 4):
        kernel.read([text]).prefill()
        prefixes.append(kernel.cache._entries[-1].prefix)
    return [*prefixes, prefix_of(kernel)]


def begun(prefix, lengths: list[int], prompts: list[list[int]], steps: int):
    """A batch that has run its prompts and so many steps, and what they gave."""
    batch, width = prefix.branch(lengths, 20), max(map(len, prompts))
    found = [StepOutput.of(batch.prompt(prompts, width, torch.tensor([width - 1]))[:, -1])]
    for _ in range(steps):
        found.append(batch.step(found[-1].argmax))
    return batch, found


def assert_equal_outputs(found, alone) -> None:
    for mine, wanted in zip(found, alone, strict=True):
        wanted = wanted[: len(mine)]
        assert [output.argmax for output in mine] == [output.argmax for output in wanted]
        for one, other in zip(mine, wanted, strict=True):
            torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.invariant(3)
def test_a_joint_step_on_two_prefixes_with_windows_equals_single_steps(kernels):
    prefixes = prefixes_of(kernels("gemma3"))
    asked = [(prefixes[0], [3], [[17, 18]]), (prefixes[1], [5, prefixes[1].tokens], [[9], [8, 7]])]
    alone = [begun(*each, 1)[1] for each in asked]
    batches, found = zip(*(begun(*each, 0) for each in asked), strict=True)
    steps = [(batch, outputs[-1].argmax) for batch, outputs in zip(batches, found, strict=True)]
    for outputs, output in zip(found, batches[0].step_together(steps), strict=True):
        outputs.append(output)
    assert_equal_outputs(found, alone)


@pytest.mark.invariant(3)
def test_joint_steps_on_several_prefixes_equal_single_steps(kernels, monkeypatch):
    """Batches of one, two and three rows on prefixes of different lengths, two of them on one prefix."""
    prefixes = prefixes_of(kernels("narrow"))
    asked = [
        (prefixes[0], [3], [[17, 18]]),
        (prefixes[1], [5, 20, 4], [[9], [8, 7], [6, 5, 4]]),
        (prefixes[0], [prefixes[0].tokens, 2], [[21, 22, 23], [24]]),
        (prefixes[2], [6], [[30]]),
    ]
    alone = [begun(*each, 5)[1] for each in asked]
    batches, found = zip(*(begun(*each, 0) for each in asked), strict=True)
    assert len({batch.batch_key for batch in batches}) == 1
    watched = Watched(monkeypatch)
    for turn in range(5):
        left = list(zip(batches, found, strict=True))[: 3 if turn == 4 else 4]  # the last one leaves
        steps = [(batch, outputs[-1].argmax) for batch, outputs in left]
        for (batch, outputs), output in zip(
            left, batches[0].step_together(steps, ahead=turn != 1), strict=True
        ):
            outputs.append(output)
            batch.advance()
            assert (batch._next_step is not None) == (turn in (0, 2, 3))
    # loaded at the start, and after the step without another one behind it; the last step was under way
    assert watched.loaded == [8, 8]
    assert watched.run == 5
    assert_equal_outputs(found, alone)


@pytest.mark.invariant(3)
@pytest.mark.invariant(7)
def test_threads_share_passes(kernels, monkeypatch):
    kernel = kernels("narrow")
    prefix, together = prefix_of(kernel), []
    sets = [
        branches(kernel, prefix, [5, 5]),
        branches(kernel, prefix, [6]),
        branches(kernel, prefix, [4, 5, 3]),
    ]
    wanted = [decoded(kernel, prefix, asked) for asked in sets]
    step_together = TritonRows.step_together

    def counting(batch, steps, *, ahead=False):
        together.append(len(steps))
        return step_together(batch, steps, ahead=ahead)

    monkeypatch.setattr(TritonRows, "step_together", counting)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda asked: decoded(kernel, prefix, asked), sets)) == wanted
    assert max(together) > 1


@pytest.mark.invariant(2)
def test_prefix_grows_while_a_batch_decodes(kernels):
    kernel = kernels("narrow")
    prefix = prefix_of(kernel)
    asked = branches(kernel, prefix, [5, 5])
    wanted = decoded(kernel, prefix, asked)
    steps, found = kernel.engine.decode(prefix, asked), {}
    for count, step in enumerate(steps):
        found.update({item.branch: item.done.token_ids for item in step if item.done})
        if count == 2:
            prefix.extend(kernel.engine.encode(Text(" And then the fog came.")))
    assert [found[0], found[1]] == wanted


def test_graphs_are_captured_again_when_hooks_or_dtype_change(kernels):
    kernel = kernels("narrow")
    passes, layers = CapturedPasses(kernel.engine.runner), [0, 1]
    passes.refresh()
    graph = passes.decode_step(StepSize.of([3]), layers, torch.float32)
    assert graph.size.rows == 4
    passes.refresh()
    assert passes.decode_step(StepSize.of([4]), layers, torch.float32) is graph
    with spying(kernel.model):  # a hook that has to run
        passes.refresh()
        assert passes.decode_step(StepSize.of([4]), layers, torch.float32) is not graph
    passes.refresh()
    graph = passes.decode_step(StepSize.of([4]), layers, torch.float32)
    with torch.no_grad():
        kernel.model.model.norm.weight.mul_(1.0)  # the same place: what is captured reads what is there
    passes.refresh()
    assert passes.decode_step(StepSize.of([4]), layers, torch.float32) is graph
    assert passes.decode_step(StepSize.of([4]), layers, torch.bfloat16) is not graph


def test_graphs_are_captured_again_when_module_attributes_change(kernels, monkeypatch):
    kernel = kernels("narrow")
    passes, norm = CapturedPasses(kernel.engine.runner), kernel.model.model.norm
    norm.scaling = {"default": 1.0}  # as adapters keep theirs
    for change in (
        lambda: monkeypatch.setattr(norm, "variance_epsilon", 1e-3),
        lambda: norm.scaling.update(default=0.5),
        lambda: monkeypatch.setattr(norm, "mode", ["a"], raising=False),
        lambda: monkeypatch.setattr(norm, "forward", lambda hidden: hidden),
        lambda: norm.register_buffer("table", torch.zeros(3)),
    ):
        passes.refresh()
        graph = passes.decode_step(StepSize.of([1]), [0], torch.float32)
        change()
        passes.refresh()
        assert passes.decode_step(StepSize.of([1]), [0], torch.float32) is not graph
    del norm.scaling, norm.table


def test_failing_kernels_fall_back_to_pytorch(tiny_model, smollm2, monkeypatch):
    def fails(*_args, **_kwargs):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(engine, "choose_backend", lambda _, runner: choose_backend("kernels", runner))
    monkeypatch.setattr(triton_backend, "branch_attention", fails)
    with pytest.warns(UserWarning, match="out of resource: shared memory.*plain PyTorch"):
        kernel = WimKernel(tiny_model("llama"), smollm2[1])
    assert kernel.engine.cache_mode == "shared"
    assert kernel.engine.backend.name == "parts"
    reading = kernel.read(CHUNKS)
    result = reading.ask("Who owned the ship?", **BRIEF)
    assert list(result.token_ids) == generated(reading, result, BRIEF["answer_config"])


def test_prefix_of_another_dtype_is_refused(kernels):
    kernel = kernels("narrow")
    prefix = prefix_of(kernel)
    batch = prefix.branch([prefix.tokens], 4)
    batch._dtype = torch.bfloat16
    with pytest.raises(UnsupportedModelError, match="read the document again"):
        batch.prompt([[1, 2]], 2, torch.tensor([1]))


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        ([1], StepSize(1, 1, 1)),
        ([3], StepSize(4, 1, 4)),
        ([33], StepSize(64, 1, 64)),
        ([1, 1, 1], StepSize(4, 4, 1)),
        ([8, 1], StepSize(16, 2, 8)),
    ],
)
def test_step_size_has_powers_of_two(rows, size):
    assert StepSize.of(rows) == size


def test_empty_prefix_gets_rows_in_pytorch(kernels):
    kernel = kernels("narrow")
    assert not isinstance(kernel.engine.open().branch([0], 4), TritonRows)


# -- which way attention is computed ----------------------------------------------------------------------------------


def test_attention_backend_is_named_or_chosen(tiny_model, smollm2):
    model, tokenizer = tiny_model("llama"), smollm2[1]
    assert WimKernel(model, tokenizer).engine.backend.name == "parts"  # on a CPU
    assert WimKernel(model, tokenizer, attention="parts").engine.backend.name == "parts"
    with pytest.raises(ValueError, match="auto, parts, kernels, cudnn"):
        WimKernel(model, tokenizer, attention="flex")


def test_unavailable_attention_backend_is_refused(tiny_model, smollm2, monkeypatch):
    monkeypatch.setattr(choose, "available", lambda device: False)
    with pytest.raises(UnsupportedModelError, match="needs Triton"):
        WimKernel(tiny_model("llama"), smollm2[1], attention="kernels")


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_cudnn_parts_are_merged_exactly(tiny_model, smollm2, monkeypatch, kind):
    tiles, own = [], []

    def by_library(query, keys, values, scale, *, causal=False):
        heads, groups = keys.shape[1], query.shape[1] // keys.shape[1]
        (own if causal else tiles).append(keys.shape[2])
        if not causal:
            query = torch.cat([query, torch.zeros_like(query[:, :, :3])], 2)  # a library may want more
        out, lse = attend(
            query[0].unflatten(0, (heads, groups)),
            keys[0, :, None],
            values[0, :, None],
            AttentionParams(scale),
            causal=causal,
        )
        return out.flatten(0, 1).transpose(0, 1).contiguous().transpose(0, 1)[None], lse.flatten(0, 1)[None]

    monkeypatch.setattr(cudnn, "TILE", 8)
    monkeypatch.setattr(cudnn, "FEW_QUERIES", 4)
    monkeypatch.setattr(cudnn, "_cudnn", by_library)
    monkeypatch.setattr(cudnn, "_cudnn_fits", lambda query, values: True)
    kernel = WimKernel(tiny_model(kind), smollm2[1], attention="cudnn", frame=FRAME)
    kernel.engine.runner.unfuse()
    reading = kernel.read(CHUNKS)
    result = reading.ask("Who owned the ship?", **BRIEF)
    assert tiles
    assert all(size % 8 == 0 for size in tiles)
    assert own
    assert all(size % 4 == 0 for size in own)
    assert list(result.token_ids) == generated(reading, result, BRIEF["answer_config"])
    kernel.engine.runner.uninstall()


def test_saved_readings_move_between_kernels_and_pytorch(kernels, tiny_model, smollm2, tmp_path):
    """Their layouts differ: one is token by token, the other head after head."""
    ways = {
        "kernels": kernels("narrow"),
        "parts": WimKernel(tiny_model("narrow"), smollm2[1], attention="parts", frame=FRAME),
    }
    options = {**BRIEF, "relevance": "combined"}
    wanted = ways["parts"].read(CHUNKS).ask("Who?", **options)
    for writer, reader in (("kernels", "parts"), ("parts", "kernels")):
        reading = ways[writer].read(CHUNKS)
        reading.prefill()
        reading.save(tmp_path / writer)
        ways[reader].cache.clear()
        found = ways[reader].load(tmp_path / writer).ask("Who?", **options)
        assert found.usage.prefill_tokens == 0
        assert found.token_ids == wanted.token_ids
        assert [m.token_ids for m in found.margins] == [m.token_ids for m in wanted.margins]
        assert [m.relevance for m in found.margins] == pytest.approx(
            [m.relevance for m in wanted.margins], abs=1e-4
        )
