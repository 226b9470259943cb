"""A tool with which an agent asks about a long document, and whose margins reach the workflow's stream."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast

from llama_index.core.base.response.schema import Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, Event

from wim_integrations.llama_index.events import Teller
from wim_integrations.llama_index.nodes import NodeReading, Order
from wim_kernel import Answered, ChunkRead, MarginWritten, Options, WimError, WimKernel
from wim_kernel.reports import DESCRIPTION, report
from wim_kernel.settings import settle


class WimProgress(Event):
    """A chunk was read: ``query_str``, ``tokens`` of ``total_tokens``."""

    query_str: str
    tokens: int
    total_tokens: int


class WimMargin(Event):
    """A margin was written, or its chunk found not relevant enough: ``query_str``, ``margin``."""

    query_str: str
    margin: dict[str, Any]


def create_wim_tool(
    kernel: WimKernel,
    documents: str | Sequence[str | BaseNode],
    *,
    name: str = "ask_document",
    description: str = DESCRIPTION.format(documents="the document"),
    order: Order = "given",
    chunk_tokens: int | None = None,
    join_small: bool = False,
    max_output_chars: int = 4000,
    **options: Any,
) -> FunctionTool:
    """A function tool that answers questions about one document.

    While it runs in an agent workflow, `WimProgress` and `WimMargin` reach ``handler.stream_events()``. What it gives
    is a response: its text is the answer and the notes it stands on, its metadata and source nodes are as
    `WimSynthesizer` has them. Outside a workflow, give a `WimSynthesizer`'s query engine to a `QueryEngineTool`.

    Args:
        kernel: reads and answers.
        documents: the document's nodes or texts, in order.
        name: the tool's name.
        description: what the agent's model is told of it.
        order: nodes ``"given"`` as they come, or in ``"document"`` order.
        chunk_tokens: longest chunk; longer nodes are split.
        join_small: small neighbours of one document share a chunk.
        max_output_chars: longest text of the response, in characters.
        options: the kernel's `Options`.

    Raises:
        ValueError: if there is nothing to read, or an option makes no sense.
    """
    settle(cast(Options, options))
    given = [documents] if isinstance(documents, str) else documents
    nodes = [item if isinstance(item, BaseNode) else TextNode(text=item) for item in given]
    source = NodeReading(kernel, nodes, order=order, chunk_tokens=chunk_tokens, join_small=join_small)

    async def ask_document(ctx: Context, question: str) -> Response:
        teller = Teller(CallbackManager(), source, question)
        last: Any = None
        try:
            async with aclosing(source.reading.astream(question, **cast(Options, options))) as events:
                async for last in events:
                    teller.tell(last)
                    if isinstance(last, ChunkRead):
                        told = WimProgress(
                            query_str=question, tokens=last.tokens, total_tokens=last.total_tokens
                        )
                        ctx.write_event_to_stream(told)
                    elif isinstance(last, MarginWritten):
                        ctx.write_event_to_stream(
                            WimMargin(query_str=question, margin=source.margin_data(last.margin))
                        )
        except (WimError, ValueError) as error:  # the agent can ask something else
            teller.fail(error)
            return Response(f"Error: {error}")
        except BaseException as error:
            teller.fail(error)
            raise
        return _response(source, last, max_output_chars)

    return FunctionTool.from_defaults(async_fn=ask_document, name=name, description=description)


def _response(source: NodeReading, last: Answered, max_output_chars: int) -> Response:
    result = last.result
    notes = [margin.text.strip() for margin in result.kept if margin.text.strip()]
    text = report(result.answer.strip() or "(The model gave no answer.)", notes, max_output_chars)
    relevance = source.relevance_of_nodes(result.margins)
    metadata: dict[str, Any] = {node.node_id: node.metadata for node in source.nodes}
    metadata.update(source.result_data(result))
    scored = [NodeWithScore(node=node, score=relevance.get(node.node_id)) for node in source.nodes]
    return Response(text, source_nodes=scored, metadata=metadata)
