"""Nodes as a reading: order, overlaps, metadata, joining, and where margins stand."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llama_index.core import SummaryIndex, get_response_synthesizer
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import Document, MetadataMode, NodeRelationship, NodeWithScore, TextNode
from pieces import LOG, piece

from wim_integrations.llama_index import WimNodePostprocessor, WimSynthesizer
from wim_integrations.llama_index.nodes import NodeReading
from wim_kernel import EmptyDocumentError, WimKernel

QUESTION = "Who owned the ship?"


def texts(source: NodeReading) -> list[str]:
    return [chunk.text for chunk in source.reading.chunks]


def seen(source: NodeReading) -> str:
    """The document as the model sees it."""
    reading = source.reading
    ids = reading.prompt_ids(reading.ask(QUESTION, threshold=1, answer_tokens=1))
    return str(reading.kernel.tokenizer.decode(ids))


@pytest.mark.in_process
def test_overlaps_and_repeated_metadata_are_read_once(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    source = NodeReading(kernel, [item.node for item in nodes])
    assert texts(source) == ["file: log.txt\n\n" + LOG[:46], LOG[46:81], LOG[82:100]]
    assert "file: log.txt\n\n" + LOG[:81] in seen(source)


def test_metadata_that_is_excluded_is_not_read(kernel: WimKernel) -> None:
    node = TextNode(text="A text.", metadata={"a": 1, "b": 2}, excluded_llm_metadata_keys=["a"])
    assert texts(NodeReading(kernel, [node])) == [node.get_content(MetadataMode.LLM)] == ["b: 2\n\nA text."]


def test_order_document_sorts_nodes_by_position(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    other = TextNode(text="Of nothing known.", id_="x")
    wanted = [item.node for item in nodes]
    shuffled = [wanted[2], other, wanted[1], wanted[0]]
    assert NodeReading(kernel, shuffled).nodes == shuffled
    source = NodeReading(kernel, shuffled, order="document")
    assert source.nodes == [*wanted, other]
    assert "".join(texts(source)).count("It rained all night.") == 1


@pytest.mark.in_process
def test_a_splitters_nodes_are_the_document_again(kernel: WimKernel) -> None:
    text = " ".join(f"The mate wrote down sentence number {number}." for number in range(60))
    nodes = SentenceSplitter(chunk_size=80, chunk_overlap=30).get_nodes_from_documents([Document(text=text)])
    assert sum(len(node.get_content()) for node in nodes) > len(text)
    random.Random(0).shuffle(nodes)
    source = NodeReading(kernel, nodes, order="document")
    assert "".join(texts(source)).replace(" ", "") == text.replace(" ", "")
    for margin in source.reading.margins(QUESTION, threshold=0, margin_style="verbatim"):
        data = source.margin_data(margin)
        for quote in data["quotes"]:
            said = text[quote["start_char_idx"] : quote["end_char_idx"]]
            assert said in margin.text
            node = next(node for node in nodes if node.node_id == quote["node_id"])
            assert node.get_content()[quote["start"] : quote["end"]] == said


@pytest.mark.in_process
def test_small_neighbours_share_a_chunk_and_keep_their_names(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    other = piece("register", 26, 46)
    given = [*(item.node for item in nodes), other]
    source = NodeReading(kernel, given, join_small=True)
    assert len(texts(source)) == 2
    first, second = source.reading.margins(QUESTION, threshold=0, margin_tokens=2, margin_style="free")
    assert source.margin_data(first)["node_ids"] == ["log-0", "log-26", "log-82"]
    assert source.margin_data(first)["ref_doc_ids"] == ["log"]
    assert source.margin_data(second)["node_ids"] == ["register-26"]
    (verbatim, _) = source.reading.margins(QUESTION, threshold=0, margin_style="verbatim")
    for quote in source.margin_data(verbatim)["quotes"]:
        assert LOG[quote["start_char_idx"] : quote["end_char_idx"]] in verbatim.text


def test_long_nodes_are_split_and_margins_name_their_node(kernel: WimKernel) -> None:
    node = piece("log", 0, 100)
    source = NodeReading(kernel, [node], chunk_tokens=10)
    margins = source.reading.margins(QUESTION, threshold=0, margin_tokens=2)
    assert len(margins) > 2
    data = [source.margin_data(margin) for margin in margins]
    assert all(item["node_ids"] == ["log-0"] for item in data)
    spans = [span for item in data for span in item["spans"]]
    assert "".join(LOG[span["start_char_idx"] : span["end_char_idx"]] for span in spans) == LOG


def test_nodes_without_text_make_an_empty_reading(kernel: WimKernel) -> None:
    for nodes in ([], [TextNode(text=" ")]):
        with pytest.raises(EmptyDocumentError):
            NodeReading(kernel, nodes)


@pytest.mark.in_process
def test_white_space_around_a_text_does_not_hide_its_place(kernel: WimKernel) -> None:
    text = "  \nElsa Brandt owned the ship.  \n"
    for node in (
        Document(text=text, metadata={"file_path": "/a.txt"}),
        TextNode(text=text, metadata={"page": 1}, start_char_idx=100, end_char_idx=100 + len(text)),
    ):
        source = NodeReading(kernel, [node])
        (margin,) = source.reading.margins(QUESTION, threshold=0, margin_style="verbatim")
        assert margin.text == text.strip()
        (quote,) = source.margin_data(margin)["quotes"]
        assert text[quote["start"] : quote["end"]] == margin.text
        assert quote["start_char_idx"] == (None if isinstance(node, Document) else 100 + quote["start"])


def test_metadata_is_read_with_the_first_text_it_is_of(kernel: WimKernel) -> None:
    first, inside, later = (
        piece("log", 0, 60, page="1"),
        piece("log", 10, 40, page="2"),
        piece("log", 60, 90, page="2"),
    )
    source = NodeReading(kernel, [first, inside, later])
    assert texts(source) == ["page: 1\n\n" + LOG[:60], "", "page: 2\n\n" + LOG[60:90].strip()]
    assert NodeReading(kernel, [first, piece("log", 10, 40), piece("log", 60, 90, page="1")]).reading.tokens


def test_a_node_that_a_neighbour_said_already_keeps_its_score(kernel: WimKernel) -> None:
    nodes = [
        NodeWithScore(node=piece("log", 0, 60), score=0.4),
        NodeWithScore(node=piece("log", 10, 40), score=0.9),
    ]
    synthesizer = WimSynthesizer(kernel, margin_tokens=2, answer_tokens=2, relevance=about_elsa)
    response = synthesizer.synthesize(QUESTION, nodes)
    assert [item.score for item in response.source_nodes] == [0.9, 0.9]
    assert response.source_nodes[1].node.node_id == "log-10"


def test_offsets_of_a_text_that_was_replaced_are_not_believed(kernel: WimKernel) -> None:
    node = piece("log", 26, 46)
    node.set_content(LOG[:81])  # as a window in place of its sentence
    (margin,) = NodeReading(kernel, [node]).reading.margins(QUESTION, threshold=0, margin_tokens=2)
    (span,) = NodeReading(kernel, [node]).margin_data(margin)["spans"]
    assert (span["start"], span["end"], span["start_char_idx"]) == (0, 81, None)


def test_options_of_a_reading_are_checked(kernel: WimKernel) -> None:
    with pytest.raises(ValueError, match="order"):
        WimSynthesizer(kernel, order="documents")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_tokens"):
        WimNodePostprocessor(kernel, chunk_tokens=0)


# -- the postprocessor -------------------------------------------------------------------------------------------------


def about_elsa(evidence: Any) -> float:
    return 0.9 if "Elsa" in evidence.chunk.text else 0.1


@pytest.mark.in_process
async def test_postprocessor_returns_margins_as_nodes(kernel: WimKernel, nodes: list[NodeWithScore]) -> None:
    before = [item.model_copy(deep=True) for item in nodes]
    postprocessor = WimNodePostprocessor(kernel, relevance=about_elsa)
    assert isinstance(postprocessor, BaseNodePostprocessor)
    for found in (
        postprocessor.postprocess_nodes(nodes, query_str=QUESTION),
        await postprocessor.apostprocess_nodes(nodes, query_str=QUESTION),
    ):
        (margin,) = found
        assert margin.score == 0.9
        assert margin.node.get_content(MetadataMode.NONE) == "Elsa Brandt owned the ship Aurora."
        assert margin.node.metadata["file"] == "log.txt"
        assert "wim" not in margin.node.get_content(MetadataMode.LLM)
        assert margin.node.relationships[NodeRelationship.SOURCE].node_id == "log-26"
        (quote,) = margin.node.metadata["wim"]["quotes"]
        assert LOG[quote["start_char_idx"] : quote["end_char_idx"]] == margin.node.get_content(
            MetadataMode.NONE
        )
    assert nodes == before
    assert postprocessor.postprocess_nodes([], query_str=QUESTION) == []
    assert WimNodePostprocessor.class_name() == "WimNodePostprocessor"
    with pytest.raises(ValueError, match="query"):
        postprocessor.postprocess_nodes(nodes)
    with pytest.raises(TypeError, match="treshold"):
        WimNodePostprocessor(kernel, treshold=1)


def test_source_nodes_carry_relevance_and_are_not_changed(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    before = [item.model_copy(deep=True) for item in nodes]
    extra = NodeWithScore(node=TextNode(text="Elsewhere."), score=0.3)
    synthesizer = WimSynthesizer(kernel, relevance=about_elsa, answer_tokens=2, margin_tokens=2)
    response = synthesizer.synthesize(QUESTION, nodes, additional_source_nodes=[extra])
    assert [item.score for item in response.source_nodes] == [0.1, 0.9, 0.1, 0.3]
    assert [item.node for item in response.source_nodes[:3]] == [item.node for item in nodes]
    assert nodes == before


@pytest.mark.in_process
def test_the_postprocessor_before_a_synthesizer_of_llama_index(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    engine = RetrieverQueryEngine(
        SummaryIndex([item.node for item in nodes]).as_retriever(),
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), response_mode=ResponseMode.COMPACT),
        node_postprocessors=[WimNodePostprocessor(kernel, relevance=about_elsa)],
    )
    response = engine.query(QUESTION)
    assert [item.score for item in response.source_nodes] == [0.9]
    assert "Elsa Brandt owned the ship Aurora." in str(response)


@pytest.mark.in_process
def test_the_postprocessor_stops_early_and_can_be_made_again(
    kernel: WimKernel, nodes: list[NodeWithScore]
) -> None:
    postprocessor = WimNodePostprocessor(kernel, threshold=0, stop_after=1)
    (margin,) = postprocessor.postprocess_nodes(nodes, query_str=QUESTION)
    assert margin.node.metadata["wim"]["index"] == 0
    assert kernel.cache.held[-1].chunks == 1
    again = WimNodePostprocessor(
        kernel, **{name: getattr(postprocessor, name) for name in ("order", "options")}
    )
    assert again.options == postprocessor.options
