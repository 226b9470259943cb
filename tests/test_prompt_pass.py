"""Passes over prompts with inputs at fixed addresses: the same logits and attention as launch by launch.

On the CPU, where kernels are interpreted and a pass goes through the model's code at each run. On a GPU: tests/gpu.
"""

from __future__ import annotations

import pytest
import torch
from helpers import spying

from wim_kernel import Frame, WimKernel
from wim_kernel.engines.base import AttentionProbe
from wim_kernel.engines.local.attention.prompt_probe import ProbedRow, PromptProbe
from wim_kernel.engines.local.attention.triton_launch import interpreted
from wim_kernel.engines.local.rows import cuda_graphs
from wim_kernel.engines.local.rows.cuda_graphs import CapturedPasses
from wim_kernel.engines.local.rows.decode_step import StepSize
from wim_kernel.engines.local.rows.prompt_pass import (
    CAPTURE_PREFIX,
    KEPT_STEP,
    SHORT_PREFIX,
    WIDTH_STEP,
    PromptPass,
    PromptSize,
)

pytestmark = [
    pytest.mark.usefixtures("large_blocks"),
    pytest.mark.skipif(not interpreted(), reason="Triton is not installed, or compiles for a GPU"),
]

PROMPTS = [[17, 18, 19, 20], [21, 22]]
HEADS = ((0, 1), (1, 0), (1, 1))


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    made = WimKernel(tiny_model("narrow"), smollm2[1], attention="kernels", frame=Frame("Read.", "", "\n"))
    made.engine.runner.unfuse()
    yield made
    made.engine.runner.uninstall()


@pytest.fixture
def prefix(kernel):
    """A prefix on a model that has run no prompts yet."""
    kernel.engine.backend.passes = CapturedPasses(kernel.engine.runner)
    kernel.cache.clear()
    kernel.read(["The gull sat on the mast.", "Nobody else did, they say."]).prefill()
    return kernel.cache._entries[-1].prefix


@pytest.fixture
def runs(monkeypatch):
    """The sizes of the passes that ran with inputs at fixed addresses."""
    sizes, run = [], PromptPass.run

    def counting(self, *args):
        sizes.append(self.size)
        return run(self, *args)

    monkeypatch.setattr(PromptPass, "run", counting)
    return sizes


def probe(at: list[int], width: int) -> PromptProbe:
    measured = AttentionProbe((0, 2, 5), HEADS)
    rows = [
        ProbedRow(row, at[row], width - len(ids), range(width - 2, width), measured)
        for row, ids in enumerate(PROMPTS)
    ]
    return PromptProbe(rows)


def run(prefix, at: list[int], keep: list[int], probed: PromptProbe | None = None) -> torch.Tensor:
    batch = prefix.branch(at, 4)
    return batch.prompt(PROMPTS, 4, torch.tensor(keep), 0, probed)


@pytest.mark.invariant(3)
def test_logits_and_attention_are_those_of_a_plain_pass(kernel, prefix, runs):
    at = [prefix.tokens, 7]
    plain = probe(at, 4)
    wanted = run(prefix, at, [1, 3], plain)
    assert not runs  # nothing is captured for a size that may never come again
    for other_at in ([3, 5], at):
        again = probe(other_at, 4)
        found = run(prefix, other_at, [1, 3], again)
    assert len(runs) == 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for row in (0, 1):
        mass = plain.mass(row, torch.device("cpu"))
        assert mass.shape == (len(HEADS), 2)
        torch.testing.assert_close(again.mass(row, torch.device("cpu")), mass, rtol=1e-4, atol=1e-6)


@pytest.mark.invariant(3)
def test_steps_go_on_behind_a_replayed_prompt(kernel, prefix, runs):
    def tokens() -> list[list[int]]:
        batch = prefix.branch([prefix.tokens, 6], 7)
        found = [batch.prompt(PROMPTS, 4, torch.tensor([3]))[:, -1].argmax(-1).tolist()]
        for _ in range(3):
            found.append(batch.step(found[-1]).argmax)
        return found

    assert tokens() == tokens() == tokens()
    assert len(runs) == 2


class Graph:
    """Stands for a captured pass: a replay gives what the capture gave, whatever the model has become."""

    def __init__(self, captured: PromptPass) -> None:
        captured._forward()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_a_replay_counts_only_for_the_model_that_was_captured(kernel, prefix, runs, monkeypatch):
    at, graphs = [prefix.tokens, 7], []

    def capture(self):
        self._graph = Graph(self)
        graphs.append(self._graph)

    monkeypatch.setattr(CapturedPasses, "_can_capture", lambda self: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(PromptPass, "_capture", capture)
    wanted = run(prefix, at, [3])
    for _ in range(2):
        torch.testing.assert_close(run(prefix, at, [3]), wanted, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    assert graphs[0].replays == 2
    with spying(kernel.model) as spy:
        torch.testing.assert_close(run(prefix, at, [3]), wanted, rtol=1e-4, atol=1e-4)
    assert len(spy.batches) == 1  # the hook has run
    norm, before = kernel.model.model.norm.weight, kernel.model.model.norm.weight.detach().clone()
    for _ in range(2):
        run(prefix, at, [3])
    norm.data = 2 * before  # elsewhere in memory: nothing may be replayed
    replays = [graph.replays for graph in graphs]
    assert not torch.allclose(run(prefix, at, [3]), wanted)
    assert [graph.replays for graph in graphs] == replays
    norm.data = before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), None])
def test_a_pass_that_cannot_be_captured_runs_launch_by_launch(kernel, prefix, runs, monkeypatch, error):
    at, tried = [prefix.tokens, 7], []

    def capture(self):
        tried.append(self)
        if error is not None:
            raise error
        self._pool, self.capture_failed = None, True  # as for code that waits for the device

    monkeypatch.setattr(CapturedPasses, "_can_capture", lambda self: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(PromptPass, "_capture", capture)
    wanted = run(prefix, at, [3])
    monkeypatch.setattr(cuda_graphs, "WAIT", 3)
    for _ in range(5):
        torch.testing.assert_close(run(prefix, at, [3]), wanted, rtol=1e-4, atol=1e-4)
    passes = kernel.engine.backend.passes
    assert len(tried) == (1 if error is None else 2)  # memory may be free later
    assert len(passes._prompts) == (1 if error is None else 0)
    assert (
        passes.decode_step(StepSize.of([1]), [0, 1], torch.float32)._pool is not None
    )  # decode steps can still be captured


def test_only_the_sizes_used_last_stay_captured(kernel, prefix, runs, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST_PROMPTS", 2)
    passes = kernel.engine.backend.passes
    for at in ([prefix.tokens], [0], [prefix.tokens, 7]):
        for _ in range(2):
            width = len(PROMPTS[0])
            prefix.branch(at, 4).prompt(PROMPTS[: len(at)], width, torch.tensor([3]))
    assert [key[0].rows for key in passes._prompts] == [1, 2]


def test_sizes_are_rounded_so_that_batches_share_a_graph():
    assert PromptSize.of([0], 1, 1, ()) == PromptSize(1, WIDTH_STEP, 1, 0, ())
    assert PromptSize.of([0], 1, 2, ()) == PromptSize(1, WIDTH_STEP, KEPT_STEP, 0, ())
    assert PromptSize.of([9, 0], WIDTH_STEP, KEPT_STEP, (4,)) == PromptSize(
        2, WIDTH_STEP, KEPT_STEP, SHORT_PREFIX, (4,)
    )
    long = PromptSize.of([SHORT_PREFIX + 1], WIDTH_STEP + 1, KEPT_STEP + 1, ())
    assert long == PromptSize(1, 2 * WIDTH_STEP, 2 * KEPT_STEP, CAPTURE_PREFIX, ())
