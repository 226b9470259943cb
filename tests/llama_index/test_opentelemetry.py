"""Spans and margins reach OpenTelemetry by LlamaIndex's own package for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.schema import NodeWithScore

from wim_integrations.llama_index import WimNodePostprocessor, WimSynthesizer
from wim_kernel import WimKernel

otel = pytest.importorskip("llama_index.observability.otel")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 5}
WANTED = Counter(WimChunkRead=3, WimMarginWritten=3, WimAnswerStart=1, WimAnswerEnd=1)


@pytest.fixture(scope="module")
def exported() -> Generator[Any, None, None]:
    """What is exported, as any program sets it up. A process can set it up once."""
    exporter = in_memory.InMemorySpanExporter()
    spans, events = list(root_dispatcher.span_handlers), list(root_dispatcher.event_handlers)
    otel.LlamaIndexOpenTelemetry(span_exporter=exporter, span_processor="simple").start_registering()
    yield exporter
    root_dispatcher.span_handlers[:], root_dispatcher.event_handlers[:] = spans, events


@pytest.fixture
def spans(exported: Any) -> Any:
    exported.clear()
    return exported


def own_events(spans: Any) -> list[tuple[Any, Any]]:
    """The kernel's events with their spans."""
    return [
        (span, event)
        for span in spans.get_finished_spans()
        for event in span.events
        if event.name.startswith("Wim")
    ]


@pytest.mark.parametrize("way", ["query", "aquery", "stream", "astream"])
async def test_margins_are_events_of_the_spans_that_wrote_them(
    kernel: WimKernel, nodes: list[NodeWithScore], spans: Any, way: str
) -> None:
    synthesizer = WimSynthesizer(kernel, streaming="stream" in way, **FEW)
    index = SummaryIndex([item.node for item in nodes])
    engine = index.as_query_engine(llm=synthesizer.llm, response_synthesizer=synthesizer)
    response: Any = await engine.aquery(QUESTION) if way.startswith("a") else engine.query(QUESTION)
    if way == "stream":
        assert list(response.response_gen)
    if way == "astream":
        assert [piece async for piece in response.async_response_gen()]
    found = own_events(spans)
    ended = Counter(WimAnswerEnd=1) if "stream" in way else Counter[str]()  # its span has ended by then
    assert Counter(event.name for _, event in found) == WANTED - ended
    (name,) = {span.name for span, _ in found}
    assert name.startswith(
        "WimSynthesizer.aget_response" if way.startswith("a") else "WimSynthesizer.get_res"
    )
    by_id = {span.context.span_id: span for span in spans.get_finished_spans()}
    names, span = [], found[0][0]
    while span.parent is not None:
        span = by_id[span.parent.span_id]
        names.append(span.name.partition("-")[0].rpartition(".")[2].lstrip("_").removeprefix("a"))
    assert names == ["synthesize", "query", "query"]
    margins = [event.attributes for _, event in found if event.name == "WimMarginWritten"]
    assert {margin["margin.index"] for margin in margins} == {0, 1, 2}  # a server's come as they are done
    for margin in margins:
        assert margin["query_str"] == QUESTION
        assert 0 <= margin["margin.relevance"] <= 1
        assert json.loads(margin["margin.spans"])[0]["node_id"].startswith("log-")
        assert "[document: " in margin["prompt"]


def test_postprocessor_margins_are_span_events(
    kernel: WimKernel, nodes: list[NodeWithScore], spans: Any
) -> None:
    postprocessor = WimNodePostprocessor(kernel, threshold=0, margin_style="free", margin_tokens=3)
    kept = postprocessor.postprocess_nodes(nodes, query_str=QUESTION)
    found = own_events(spans)
    texts = {event.attributes["margin.text"] for _, event in found if event.name == "WimMarginWritten"}
    assert {node.text for node in kept} == {text for text in texts if text.strip()} != set()


def test_failed_call_ends_in_an_error_span(kernel: WimKernel, nodes: list[NodeWithScore], spans: Any) -> None:
    with pytest.raises(ValueError, match="no question"):
        WimSynthesizer(kernel, **FEW).synthesize(" ", nodes)
    assert {span.status.is_ok for span in spans.get_finished_spans()} == {False}
