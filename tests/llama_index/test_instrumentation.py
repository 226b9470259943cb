"""Instrumentation, the older callbacks, agents' streams, and the loaded model in other hands."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore
from llama_index.core.tools import QueryEngineTool
from pieces import LOG

from wim_integrations.llama_index import (
    WimAnswerEnd,
    WimAnswerStart,
    WimChunkRead,
    WimMargin,
    WimMarginWritten,
    WimNodePostprocessor,
    WimProgress,
    WimSynthesizer,
    create_wim_tool,
)
from wim_kernel import WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 5}


class Heard(BaseEventHandler):
    events: list[Any] = []

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)

    def names(self) -> Counter[str]:
        return Counter(event.class_name() for event in self.events)


@pytest.fixture
def heard() -> Generator[Heard, None, None]:
    handler = Heard(events=[])
    root_dispatcher.add_event_handler(handler)
    yield handler
    root_dispatcher.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Generator[SimpleSpanHandler, None, None]:
    handler = SimpleSpanHandler()
    root_dispatcher.add_span_handler(handler)
    yield handler
    root_dispatcher.span_handlers.remove(handler)


WANTED = Counter(
    SynthesizeStartEvent=1,
    GetResponseStartEvent=1,
    WimChunkRead=3,
    WimMarginWritten=3,
    WimAnswerStart=1,
    WimAnswerEnd=1,
    GetResponseEndEvent=1,
    SynthesizeEndEvent=1,
)


async def test_every_call_fires_the_same_events(
    kernel: WimKernel, nodes: list[NodeWithScore], heard: Heard, spans: SimpleSpanHandler
) -> None:
    async def streamed() -> None:
        response = await WimSynthesizer(kernel, streaming=True, **FEW).asynthesize(QUESTION, nodes)
        assert [piece async for piece in response.async_response_gen()]

    synthesizer = WimSynthesizer(kernel, **FEW)
    ways: list[Any] = [
        lambda: synthesizer.synthesize(QUESTION, nodes),
        lambda: synthesizer.asynthesize(QUESTION, nodes),
        lambda: list(WimSynthesizer(kernel, streaming=True, **FEW).synthesize(QUESTION, nodes).response_gen),
        streamed,
    ]
    for way in ways:
        heard.events.clear()
        result = way()
        if hasattr(result, "__await__"):
            await result
        assert heard.names() == WANTED
        mine = [event for event in heard.events if event.class_name().startswith("Wim")]
        assert len({event.span_id for event in mine}) == 1
        assert mine[0].span_id is not None
        assert all(event.query_str == QUESTION for event in mine)
    assert not spans.open_spans
    outer = [span for span in spans.completed_spans if "synthesize" in span.id_]
    assert len(outer) == len(ways)


@pytest.mark.in_process
def test_events_carry_what_happened(kernel: WimKernel, nodes: list[NodeWithScore], heard: Heard) -> None:
    response = WimSynthesizer(kernel, **FEW).synthesize(QUESTION, nodes)
    by_kind = {
        kind: [e for e in heard.events if isinstance(e, kind)] for kind in (WimChunkRead, WimMarginWritten)
    }
    assert [event.index for event in by_kind[WimChunkRead]] == [0, 1, 2]
    assert [event.margin for event in by_kind[WimMarginWritten]] == response.metadata["margins"]
    (end,) = (event for event in heard.events if isinstance(event, WimAnswerEnd))
    assert end.answer == str(response)
    assert end.usage == response.metadata["usage"]
    assert [type(event) for event in heard.events if isinstance(event, WimAnswerStart)] == [WimAnswerStart]


def test_margins_come_before_all_is_read_when_somebody_listens(
    kernel: WimKernel, nodes: list[NodeWithScore], heard: Heard
) -> None:
    WimSynthesizer(kernel, **FEW).synthesize(QUESTION, nodes)
    names = [event.class_name() for event in heard.events]
    assert names.index("WimMarginWritten") < len(names) - 1 - names[::-1].index("WimChunkRead")


@pytest.mark.in_process
async def test_older_callbacks_receive_token_counts(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    counter, debug = TokenCountingHandler(tokenizer=str.split), LlamaDebugHandler(print_trace_on_end=False)
    synthesizer = WimSynthesizer(kernel, callback_manager=CallbackManager([counter, debug]), **FEW)
    for way in ("synthesize", "asynthesize"):
        response: Any = getattr(synthesizer, way)(QUESTION, nodes)
        response = await response if way == "asynthesize" else response
        usage = response.metadata["usage"]
        (counted,) = counter.llm_token_counts
        assert (
            counted.prompt_token_count
            == usage["prefill_tokens"] + usage["cached_tokens"] + usage["prompt_tokens"]
        )
        assert counted.completion_token_count == usage["output_tokens"]
        assert len(debug.get_event_pairs(CBEventType.TREE)) == 3
        assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
        assert len(debug.get_event_pairs(CBEventType.SYNTHESIZE)) == 1
        counter.reset_counts()
        debug.flush_event_logs()


def test_a_token_budget_that_is_spent_stops_the_next_question(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    counter = TokenCountingHandler(tokenizer=str.split, token_budget=10)
    synthesizer = WimSynthesizer(kernel, callback_manager=CallbackManager([counter]), **FEW)
    with pytest.raises(ValueError, match="budget"):
        synthesizer.synthesize(QUESTION, nodes)
    assert not any(live.in_use for live in kernel.cache.held)


async def test_postprocessor_fires_events_and_callbacks(
    kernel: WimKernel, nodes: list[NodeWithScore], heard: Heard
) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    postprocessor = WimNodePostprocessor(
        kernel, callback_manager=CallbackManager([counter]), threshold=0, margin_style="free", margin_tokens=3
    )
    assert len(postprocessor.postprocess_nodes(nodes, query_str=QUESTION)) <= 3
    assert heard.names()["WimMarginWritten"] == 3
    assert counter.completion_llm_token_count > 0


# -- agents ------------------------------------------------------------------------------------------------------------


class Scripted(MockLLM, FunctionCallingLLM):
    """A chat model that calls the tool once, then is done."""

    questions: list[str] = []
    asked: int = 0

    def __init__(self, *questions: str) -> None:
        super().__init__()
        self.questions = list(questions)

    @property
    def metadata(self) -> Any:
        found = super().metadata
        found.is_function_calling_model = True
        return found

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> Any:
        return {"messages": list(chat_history or [])}

    async def astream_chat_with_tools(self, tools: Any, **kwargs: Any) -> Any:
        from llama_index.core.base.llms.types import ChatResponse

        calls = self.questions if self.asked == 0 else []
        self.asked += 1

        async def respond() -> Any:
            message = ChatMessage(role="assistant", content="" if calls else "Elsa Brandt.")
            message.additional_kwargs["calls"] = calls
            yield ChatResponse(message=message)

        return respond()

    def get_tool_calls_from_response(
        self, response: Any, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> Any:
        from llama_index.core.llms.llm import ToolSelection

        return [
            ToolSelection(tool_id=str(place), tool_name="ask_document", tool_kwargs={"question": question})
            for place, question in enumerate(response.message.additional_kwargs.get("calls", []))
        ]


async def test_margins_reach_an_agents_stream(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, [LOG[:46], LOG[46:]], **FEW)
    agent = FunctionAgent(tools=[tool], llm=Scripted(QUESTION, "How was the fog?"))
    handler = AgentWorkflow(agents=[agent]).run("Find out.")
    events = [event async for event in handler.stream_events()]
    result = await handler
    margins = [event for event in events if isinstance(event, WimMargin)]
    assert Counter(event.query_str for event in margins) == {QUESTION: 2, "How was the fog?": 2}
    assert all(event.margin["node_ids"] for event in margins)
    progress = [event for event in events if isinstance(event, WimProgress)]
    assert {(event.tokens, event.total_tokens) for event in progress} >= {(progress[-1].total_tokens,) * 2}
    outputs = [call.tool_output for call in result.tool_calls]
    assert all(output.raw_output.metadata["margins"] for output in outputs)
    assert all("Notes from the document:" in output.content for output in outputs)
    assert str(result) == "Elsa Brandt."


async def test_tool_schema_names_documents_and_output_is_bounded(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, LOG, name="log", description="The log.", max_output_chars=40, **FEW)
    assert (tool.metadata.name, tool.metadata.description) == ("log", "The log.")
    assert set(tool.metadata.get_parameters_dict()["properties"]) == {"question"}
    assert tool.requires_context
    with pytest.raises(ValueError, match="document is empty"):
        create_wim_tool(kernel, " ")
    with pytest.raises(TypeError, match="treshold"):
        create_wim_tool(kernel, LOG, treshold=1)


async def test_a_question_that_cannot_be_answered_is_said_to_the_agent(kernel: WimKernel) -> None:
    agent = FunctionAgent(tools=[create_wim_tool(kernel, LOG, **FEW)], llm=Scripted(" "))
    result = await AgentWorkflow(agents=[agent]).run("Find out.")
    assert "There is no question" in result.tool_calls[0].tool_output.content
    assert str(result) == "Elsa Brandt."


async def test_a_query_engine_tool_works_in_an_agent(
    kernel: WimKernel, nodes: list[NodeWithScore], heard: Heard
) -> None:
    index = SummaryIndex([item.node for item in nodes])
    engine = RetrieverQueryEngine(index.as_retriever(), response_synthesizer=WimSynthesizer(kernel, **FEW))

    class Asks(Scripted):
        def get_tool_calls_from_response(self, response: Any, **kwargs: Any) -> Any:
            found = super().get_tool_calls_from_response(response, **kwargs)
            return [call.model_copy(update={"tool_kwargs": {"input": QUESTION}}) for call in found]

    tool = QueryEngineTool.from_defaults(engine, name="ask_document", description="The log.")
    result = await AgentWorkflow(agents=[FunctionAgent(tools=[tool], llm=Asks(QUESTION))]).run("Find out.")
    assert result.tool_calls[0].tool_output.raw_output.metadata["margins"]
    assert heard.names()["WimMarginWritten"] == 3


# -- the loaded model in other hands -----------------------------------------------------------------------------------


def test_the_model_serves_another_llm_in_turn_from_threads(
    real_kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    from llama_index.llms.huggingface import HuggingFaceLLM  # imports torch

    other = HuggingFaceLLM(
        model=real_kernel.model,
        tokenizer=real_kernel.tokenizer,
        max_new_tokens=6,
        generate_kwargs={"do_sample": False},
    )
    synthesizer = WimSynthesizer(real_kernel, threshold=0, margin_tokens=4, answer_tokens=6)
    said = other.complete("The ship was owned by").text
    answered = str(synthesizer.synthesize(QUESTION, nodes))
    assert said
    assert other.complete("The ship was owned by").text == said
    found: dict[str, list[str]] = {"said": [], "answered": []}

    def say() -> None:
        found["said"] += [other.complete("The ship was owned by").text for _ in range(3)]

    def answer() -> None:
        found["answered"] += [str(synthesizer.synthesize(QUESTION, nodes)) for _ in range(3)]

    threads = [threading.Thread(target=work) for work in (say, answer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"said": [said] * 3, "answered": [answered] * 3}


class OpenEvents(BaseCallbackHandler):
    """Counts events that were started and not ended."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.open: list[str] = []

    def on_event_start(self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any) -> str:
        self.open.append(event_id)
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any) -> None:
        self.open.remove(event_id)

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


async def test_a_refused_call_leaves_no_event_open(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    counter = OpenEvents()
    manager = CallbackManager([counter])
    synthesizer = WimSynthesizer(kernel, callback_manager=manager, **FEW)
    postprocessor = WimNodePostprocessor(kernel=kernel, callback_manager=manager)
    with pytest.raises(ValueError, match="no question"):
        synthesizer.synthesize(" ", nodes)
    with pytest.raises(ValueError, match="no question"):
        await synthesizer.asynthesize(" ", nodes)
    with pytest.raises(ValueError, match="no question"):
        postprocessor.postprocess_nodes(nodes, query_str=" ")
    with pytest.raises(ValueError, match="no question"):
        await postprocessor.apostprocess_nodes(nodes, query_str=" ")
    assert counter.open == []
