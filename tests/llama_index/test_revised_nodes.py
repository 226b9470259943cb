"""Margins that become others once more of the nodes is known, and a postprocessor's threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, QueryBundle

from wim_integrations.llama_index import (
    WimMargin,
    WimMarginRevised,
    WimMarginWritten,
    WimNodePostprocessor,
    WimSynthesizer,
    create_wim_tool,
)
from wim_kernel import Evidence, EvidenceProbability, WimKernel
from wim_kernel.run.relevance.calibration import Calibration

QUESTION = "Who owned the ship?"
SLOWLY: dict[str, Any] = {"margin_batch": 1}  # so that most is known only later


@pytest.fixture
def revising(kernel: WimKernel, monkeypatch: pytest.MonkeyPatch) -> WimKernel:
    """A kernel that takes its scores to mean something."""
    monkeypatch.setattr(kernel, "find_calibration", lambda: Calibration(source="examples"))
    return kernel


class Heard(BaseEventHandler):
    events: list[Any] = []

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def heard() -> Generator[Heard, None, None]:
    handler = Heard(events=[])
    root_dispatcher.add_event_handler(handler)
    yield handler
    root_dispatcher.event_handlers.remove(handler)


def latest(margins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each margin as it was told last, in reading order."""
    found = {margin["index"]: margin for margin in margins}
    return [found[index] for index in sorted(found)]


@pytest.mark.in_process
@pytest.mark.parametrize("streaming", [False, True])
def test_a_response_has_the_revised_margins(
    revising: WimKernel, nodes: list[NodeWithScore], heard: Heard, streaming: bool
) -> None:
    callbacks = LlamaDebugHandler(print_trace_on_end=False)
    synthesizer = WimSynthesizer(
        revising,
        streaming=streaming,
        callback_manager=CallbackManager([callbacks]),
        answer_tokens=3,
        **SLOWLY,
    )
    response: Any = synthesizer.synthesize(QUESTION, nodes)
    margins = list(response.metadata["margins"])  # before a stream's end
    scores = [node.score for node in response.source_nodes]
    if streaming:
        assert list(response.response_gen)
    told = [event for event in heard.events if isinstance(event, WimMarginWritten)]
    names = Counter(event.class_name() for event in told)
    assert names["WimMarginWritten"] == 3
    assert names["WimMarginRevised"] == sum(isinstance(event, WimMarginRevised) for event in told) > 0
    assert latest([event.margin for event in told]) == margins == response.metadata["margins"]
    assert scores == [node.score for node in synthesizer_again(revising, nodes).source_nodes]
    assert all(margin["evidence"] for margin in margins)
    trees = callbacks.get_event_pairs(CBEventType.TREE)
    assert len(trees) >= 3
    notes = {end.payload["response"]["index"]: end.payload["response"]["text"] for _, end in trees}
    assert notes == {margin["index"]: margin["text"] for margin in margins}


def synthesizer_again(kernel: WimKernel, nodes: list[NodeWithScore]) -> Any:
    return WimSynthesizer(kernel, answer_tokens=3, **SLOWLY).synthesize(QUESTION, nodes)


@pytest.mark.in_process
async def test_a_workflow_s_stream_has_revised_margins(
    revising: WimKernel, nodes: list[NodeWithScore]
) -> None:
    told: list[Any] = []
    tool = create_wim_tool(revising, [item.node for item in nodes], answer_tokens=3, **SLOWLY)
    context = SimpleNamespace(write_event_to_stream=told.append)
    response = await tool.real_fn(context, QUESTION)
    margins = [event for event in told if isinstance(event, WimMargin)]
    assert [event.revised for event in margins[:3]] == [False] * 3
    assert any(event.revised for event in margins)
    assert latest([event.margin for event in margins]) == response.metadata["margins"]


# -- the postprocessor's threshold -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faint(EvidenceProbability):
    """A probability of evidence that is low, but lowest where nothing is said of Elsa."""

    def __call__(self, evidence: Evidence) -> float:
        return faint(evidence)


def faint(evidence: Evidence) -> float:
    return 0.15 if "Elsa" in evidence.chunk.text else 0.05


@pytest.mark.in_process
async def test_a_postprocessor_leans_to_recall(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    async def kept(**options: Any) -> list[int]:
        postprocessor, query = WimNodePostprocessor(kernel, **options), QueryBundle(QUESTION)
        found = postprocessor.postprocess_nodes(nodes, query)
        again = await postprocessor.apostprocess_nodes(nodes, query)
        assert [item.node.text for item in found] == [item.node.text for item in again]
        assert all(item.node.metadata["wim"]["evidence"] for item in found)
        return [item.node.metadata["wim"]["index"] for item in found]

    assert await kept(relevance=Faint()) == [1]
    assert await kept(relevance=Faint(), threshold=0.25) == []
    assert await kept(relevance=Faint(), threshold=0.01) == [0, 1, 2]
    assert len(await kept(relevance=Faint(), top_k=2)) == 2
    assert await kept(relevance=Faint(), keep=lambda margin: True) == [0, 1, 2]
    assert await kept(relevance=faint) == []  # the kernel's default is for the kernel's other scores
    response: Any = WimSynthesizer(kernel, relevance=Faint(), answer_tokens=1).synthesize(QUESTION, nodes)
    assert not any(margin["kept"] for margin in response.metadata["margins"])
