"""A tool for agents, which answers questions about long documents and streams its margins to the workflow."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from inspect import signature
from typing import Any, Literal, cast

from llama_index.core.base.response.schema import Response
from llama_index.core.bridge.pydantic import Field, create_model
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, Event

from wim_integrations.llama_index.chat_model import as_kernel
from wim_integrations.llama_index.citing import citation_blocks
from wim_integrations.llama_index.events import Emitter
from wim_integrations.llama_index.nodes import NodeReading, Order, scored_nodes
from wim_integrations.options import OPTION_NAMES, check_kernel, check_names
from wim_kernel import Answered, ChunkRead, MarginRevised, MarginWritten, Options, WimError, WimKernel
from wim_kernel.common.copying import HoldsShared
from wim_kernel.common.relay import arelay
from wim_kernel.run.options import parse_options
from wim_kernel.text.tool_text import DESCRIPTION, report


class WimProgress(Event):
    """A chunk was read: ``query_str``, ``tokens`` of ``total_tokens``."""

    query_str: str
    tokens: int
    total_tokens: int


class WimMargin(Event):
    """A margin was written, or its chunk was not relevant enough for a note: ``query_str``, ``margin``.

    If ``revised``, it replaces the margin with the same index.
    """

    query_str: str
    margin: dict[str, Any]
    revised: bool = False


Documents = str | BaseNode | NodeWithScore | Sequence[str | BaseNode | NodeWithScore]


class WimTool(HoldsShared, FunctionTool):
    """A tool with a kernel, which its copies share."""


def create_wim_tool(
    kernel: WimKernel | LLM,
    documents: Documents | Mapping[str, Documents],
    *,
    name: str = "ask_document",
    description: str | None = None,
    order: Order = "given",
    chunk_tokens: int | None = None,
    join_small: bool = False,
    max_output_chars: int = 4000,
    **options: Any,
) -> FunctionTool:
    """A function tool that answers questions about documents.

    While the tool runs in an agent workflow, ``handler.stream_events()`` yields `WimProgress` and `WimMargin`. Its
    output is a response, whose text is the answer and the kept notes, and whose metadata and source nodes are those of
    `WimSynthesizer`. Outside a workflow, give a `WimSynthesizer`'s query engine to a `QueryEngineTool`.

    Args:
        kernel: the kernel, or a language model.
        documents: one document's nodes or texts, in order; or several documents by name, of which the agent's model
            chooses one.
        name: the tool's name.
        description: the tool's description for the agent's model; the default names the documents.
        order: ``"given"``, or ``"document"`` to sort nodes by document and position.
        chunk_tokens: most tokens of a chunk; longer nodes are split.
        join_small: whether small adjacent nodes of one document share a chunk.
        max_output_chars: most characters of the response's text.
        options: the kernel's `Options`.

    Raises:
        TypeError: if the documents are neither nodes nor texts.
        ValueError: if there are no documents, or for an option out of range.
    """
    kernel = as_kernel(kernel)
    check_kernel(kernel, "create_wim_tool")
    check_names(options, [*OPTION_NAMES, *_ARGUMENTS], "create_wim_tool")
    parse_options(cast(Options, options))
    named = documents if isinstance(documents, Mapping) else {"the document": documents}
    if not named:
        raise ValueError("There are no documents to ask about: give create_wim_tool at least one.")
    reading = {"order": order, "chunk_tokens": chunk_tokens, "join_small": join_small}
    sources = {title: NodeReading(kernel, _nodes(item), **reading) for title, item in named.items()}  # type: ignore[arg-type]
    titles = list(sources)

    async def ask_document(ctx: Context, question: str, document: str = titles[0]) -> Response:
        source = sources.get(document)
        if source is None:
            return Response(
                f"Error: There is no document called {document!r}. There are: {', '.join(titles)}."
            )
        return await _answer(ctx, question, source, cast(Options, options), max_output_chars)

    listed = titles[0] if len(titles) == 1 else "one of these documents: " + ", ".join(titles)
    arguments: dict[str, Any] = {
        "question": (str, Field(description="A plain question, complete in itself."))
    }
    if len(titles) > 1:
        arguments["document"] = (Literal[tuple(titles)], Field(description="Which document to read."))
    return WimTool.from_defaults(
        async_fn=ask_document,
        name=name,
        description=description or DESCRIPTION.format(documents=listed),
        fn_schema=create_model("AskDocument", **arguments),
    )


async def _answer(
    ctx: Context, question: str, source: NodeReading, options: Options, max_output_chars: int
) -> Response:
    emitter, last = Emitter(CallbackManager(), source, question, options), None
    try:
        async with aclosing(arelay(source.reading.astream(question, **options), emitter)) as events:
            async for last in events:
                if isinstance(last, ChunkRead):
                    progress = WimProgress(
                        query_str=question, tokens=last.tokens, total_tokens=last.total_tokens
                    )
                    ctx.write_event_to_stream(progress)
                elif isinstance(last, MarginWritten | MarginRevised):
                    data, revised = source.margin_data(last.margin), isinstance(last, MarginRevised)
                    ctx.write_event_to_stream(WimMargin(query_str=question, margin=data, revised=revised))
    except (WimError, ValueError) as error:  # a message, so that the agent can continue
        return Response(f"Error: {error}")
    assert isinstance(last, Answered), "a stream's last event is `Answered`"
    return _response(source, last, max_output_chars)


def _nodes(documents: Documents) -> list[BaseNode]:
    """A document's nodes.

    Raises:
        TypeError: for a document that is neither nodes nor texts.
    """
    given = [documents] if isinstance(documents, str | BaseNode | NodeWithScore) else documents
    if isinstance(given, bytes | Mapping) or not isinstance(given, Sequence):
        raise TypeError(
            f"A document is its nodes or texts, in order, not a {type(given).__name__}: give an index or a retriever "
            "to a query engine with a WimSynthesizer, and that to a QueryEngineTool."
        )
    nodes: list[BaseNode] = []
    for index, item in enumerate(given):
        if not isinstance(item, str | BaseNode | NodeWithScore):
            raise TypeError(
                f"A document is its nodes or texts; the one at position {index} is a {type(item).__name__}."
            )
        node = item.node if isinstance(item, NodeWithScore) else item
        nodes.append(TextNode(text=node) if isinstance(node, str) else node)
    return nodes


def _response(source: NodeReading, last: Answered, max_output_chars: int) -> Response:
    result = last.result
    notes = [margin.text.strip() for margin in result.kept if margin.text.strip()]
    text = report(result.answer.strip() or "(The model gave no answer.)", notes, max_output_chars)
    metadata: dict[str, Any] = {node.node_id: node.metadata for node in source.nodes}
    metadata.update(source.result_data(result))
    if result.citations:
        metadata["citations"] = [block.model_dump() for block in citation_blocks(result, source)]
    given = [NodeWithScore(node=node) for node in source.given]
    scored = scored_nodes(source, result.margins, given)
    return Response(text, source_nodes=scored, metadata=metadata)


_ARGUMENTS = tuple(signature(create_wim_tool).parameters)
