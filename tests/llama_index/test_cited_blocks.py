"""Citations as LlamaIndex's own citation blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, TextBlock
from llama_index.core.schema import NodeWithScore, TextNode

from wim_integrations.llama_index import WimSynthesizer, citation_blocks
from wim_integrations.llama_index.nodes import NodeReading
from wim_kernel import Margin, WimResult
from wim_kernel.common.margins import Timings, Usage
from wim_kernel.run.citing import citations_of

TEXT = "The gull sat on the mast. Elsa Brandt owned the ship Aurora. The fog was thick."
QUOTE = "Elsa Brandt owned the ship Aurora."
ANSWER = "Elsa Brandt [1], or Jan [2]."


@pytest.fixture
def source(kernel: Any) -> NodeReading:
    node = TextNode(
        text=TEXT,
        id_="node-1",
        metadata={"file_name": "log.pdf", "page_label": "7"},
        excluded_llm_metadata_keys=["page_label"],
        start_char_idx=1000,
        end_char_idx=1000 + len(TEXT),
    )
    return NodeReading(kernel, [node])


def test_citations_are_blocks_with_their_places_in_answer_node_and_document(source: NodeReading) -> None:
    chunk = source.reading.chunks[0]
    at = chunk.text.index(QUOTE)
    quoted = Margin(0, QUOTE, 0.9, True, chunk, chunk.locate(at, at + len(QUOTE)))
    invented = Margin(0, "Jan Dekker drowned at sea in a storm.", 0.5, True, chunk)
    result = WimResult(
        ANSWER, (quoted, invented), Usage(), Timings(), citations=citations_of(ANSWER, [quoted, invented])
    )
    found, lost = citation_blocks(result, source)
    assert isinstance(found, CitationBlock)
    assert isinstance(found.cited_content, TextBlock)
    assert found.cited_content.text == QUOTE
    assert (found.source, found.title) == ("node-1", "log.pdf")
    info = found.additional_location_info
    assert ANSWER[info["answer_start"] : info["answer_end"]] == "[1]"
    assert TEXT[info["start"] : info["end"]] == QUOTE
    assert (info["start_char_idx"], info["page"], info["exact"]) == (1000 + TEXT.index(QUOTE), 7, 1)
    assert "start" not in lost.additional_location_info
    assert lost.additional_location_info["exact"] == 0
    message = ChatMessage(role="assistant", blocks=[TextBlock(text=ANSWER), found])
    again = ChatMessage.model_validate(json.loads(message.model_dump_json()))
    assert again.blocks[1] == found


@pytest.mark.in_process
@pytest.mark.parametrize("cites", [True, False])
def test_a_response_has_them_as_metadata_if_asked_for(kernel: Any, cites: bool) -> None:
    from transformers import GenerationConfig

    bracket, one = (kernel.tokenizer.convert_tokens_to_ids(name) for name in "[1")
    loved = [[[bracket], 14.0], [[bracket, one], 30.0]]  # the grammar closes it
    config = GenerationConfig(
        max_new_tokens=24, do_sample=False, sequence_bias=loved, repetition_penalty=1.05
    )
    synthesizer = WimSynthesizer(
        kernel, citations=cites, threshold=0, margin_style="verbatim", answer_config=config
    )
    nodes = [NodeWithScore(node=TextNode(text=TEXT, id_="node-1"))]
    response = synthesizer.synthesize("Who owned the ship?", nodes)
    assert response.metadata is not None
    assert ("citations" in response.metadata) == cites, str(response)
    for item in response.metadata.get("citations", ()):
        block = CitationBlock.model_validate(item)
        info = block.additional_location_info
        assert str(response)[info["answer_start"] : info["answer_end"]] == "[1]"
        assert TEXT[info["start"] : info["end"]] == block.cited_content.text
