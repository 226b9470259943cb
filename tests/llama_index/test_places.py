"""What belongs to a node is found by the node's place, whatever ids it shares with others."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from wim_integrations.langchain import WimRunnable
from wim_integrations.llama_index import WimNodePostprocessor, WimSynthesizer, create_wim_tool
from wim_integrations.llama_index.nodes import NodeReading
from wim_kernel import Evidence, WimKernel

QUESTION = "Who owned the ship?"
FEW: dict[str, Any] = {"threshold": 0, "margin_tokens": 3, "answer_tokens": 4}
TEXTS = ["Elsa Brandt owned the ship.", "The gull sat on the mast.", "The fog was thick."]


def about_elsa(evidence: Evidence) -> float:
    return 1.0 if "Elsa" in evidence.chunk.text else 0.01


def twins(ids: list[str], document: str | None = None) -> list[NodeWithScore]:
    nodes = []
    for place, (node_id, text) in enumerate(zip(ids, TEXTS, strict=True)):
        start = 100 * (2 - place)  # the last node comes first in its document
        node = TextNode(text=text, id_=node_id, start_char_idx=start, end_char_idx=start + len(text))
        if document:
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
        nodes.append(NodeWithScore(node=node, score=0.5))
    return nodes


@pytest.mark.parametrize("ids", [["same", "same", "same"], ["a", "same", "same"], ["a", "b", "c"]])
@pytest.mark.parametrize("order", ["given", "document"])
async def test_nodes_of_one_id_keep_their_own_scores(kernel: WimKernel, ids: list[str], order: Any) -> None:
    synthesizer = WimSynthesizer(kernel, order=order, relevance=about_elsa, **FEW)
    more = [NodeWithScore(node=TextNode(text="Read elsewhere.", id_=ids[0]), score=0.3)]
    for response in (
        synthesizer.synthesize(QUESTION, twins(ids, "log"), additional_source_nodes=more),
        await synthesizer.asynthesize(QUESTION, twins(ids, "log"), additional_source_nodes=more),
    ):
        assert [item.node.get_content() for item in response.source_nodes] == [*TEXTS, "Read elsewhere."]
        assert [item.score for item in response.source_nodes] == [1.0, 0.01, 0.01, 0.3]


@pytest.mark.parametrize("order", ["given", "document"])
async def test_a_tools_sources_keep_their_own_scores(kernel: WimKernel, order: Any) -> None:
    nodes = [item.node for item in twins(["same"] * 3, "log")]

    class Silent:
        def write_event_to_stream(self, event: Any) -> None:
            pass

    tool = create_wim_tool(kernel, nodes, order=order, relevance=about_elsa, **FEW)
    output = await tool.real_fn(Silent(), QUESTION) if hasattr(tool, "real_fn") else None
    assert output is not None
    assert [item.score for item in output.source_nodes] == [1.0, 0.01, 0.01]


@pytest.mark.in_process
def test_margins_as_nodes_keep_their_own_sources(kernel: WimKernel) -> None:
    margins = WimNodePostprocessor(kernel, relevance=about_elsa, threshold=0).postprocess_nodes(
        twins(["same"] * 3), query_str=QUESTION
    )
    assert [margin.score for margin in margins] == [1.0, 0.01, 0.01]
    assert [margin.node.get_content() for margin in margins] == TEXTS


def test_a_documents_name_is_never_taken_for_a_place(kernel: WimKernel) -> None:
    shared = "The very same sentence stands in both of these texts."
    nodes = [TextNode(text=f"One begins. {shared}"), TextNode(text=f"{shared} Two ends.")]
    nodes[1].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="node 0")
    assert [chunk.text for chunk in NodeReading(kernel, nodes).reading.chunks] == [n.text for n in nodes]


@pytest.mark.parametrize("ids", [("same", "same"), ("0", "0"), (None, "0"), ("1", None)])
def test_langchain_documents_of_one_id_are_two(kernel: WimKernel, ids: Any) -> None:
    shared = "The very same sentence stands in both of these texts."
    documents = [
        Document(page_content=f"One begins. {shared}", id=ids[0]),
        Document(page_content=f"{shared} Two ends.", id=ids[1]),
    ]
    output = WimRunnable(kernel=kernel, **FEW).invoke({"question": QUESTION, "documents": documents})
    assert [(margin["document"], margin["start"]) for margin in output["margins"]] == [(0, 0), (1, 0)]


# -- the tool's documents ----------------------------------------------------------------------------------------------


class Listening:
    def write_event_to_stream(self, event: Any) -> None:
        pass


async def test_the_tool_takes_several_documents_by_name(kernel: WimKernel) -> None:
    tool = create_wim_tool(kernel, {"ships": TEXTS[0], "birds": [TextNode(text=TEXTS[1])]}, **FEW)
    schema = tool.metadata.get_parameters_dict()
    assert schema["properties"]["document"]["enum"] == ["ships", "birds"]
    assert "ships, birds" in tool.metadata.description
    for name, text in (("ships", TEXTS[0]), ("birds", TEXTS[1])):
        output = await tool.real_fn(Listening(), QUESTION, name)
        assert [item.node.get_content() for item in output.source_nodes] == [text]
    assert "There are: ships, birds" in str(await tool.real_fn(Listening(), QUESTION, "maps"))
    alone = create_wim_tool(kernel, TextNode(text=TEXTS[0]), **FEW)
    assert set(alone.metadata.get_parameters_dict()["properties"]) == {"question"}


@pytest.mark.parametrize(
    "wrong", [3, None, b"bytes", [3], [None], {"a": 3}, {"a": {"b": "c"}}, object(), {1, 2}]
)
def test_tool_refuses_what_is_no_document(kernel: WimKernel, wrong: Any) -> None:
    with pytest.raises(TypeError, match="A document is its nodes or texts"):
        create_wim_tool(kernel, wrong)
    with pytest.raises(ValueError, match="no documents"):
        create_wim_tool(kernel, {})


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["answer", "summarise"])
def test_older_callbacks_see_the_prompts(kernel: WimKernel, task: Any) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    synthesizer = WimSynthesizer(
        kernel, callback_manager=CallbackManager([debug]), task=task, margin_style="free", **FEW
    )
    question = QUESTION if task == "answer" else ""
    response = synthesizer.synthesize(question, twins(["a", "b", "c"]))
    ((began, ended),) = debug.get_event_pairs(CBEventType.LLM)
    prompt = ended.payload[EventPayload.PROMPT]
    assert "[document: 3 chunks, " in began.payload[EventPayload.PROMPT]
    assert "[document: 3 chunks, " in prompt
    assert ("Write a short summary" if task == "summarise" else f"Question: {QUESTION}") in prompt
    for margin in response.metadata["margins"]:
        assert f"- {margin['text'].strip()}" in prompt
    pairs = debug.get_event_pairs(CBEventType.TREE)
    assert len(pairs) == 3
    assert all("the last passage above" in began.payload[EventPayload.PROMPT] for began, _ in pairs)
