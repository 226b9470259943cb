"""A node postprocessor that replaces nodes by their margins, for any synthesizer."""

from __future__ import annotations

from inspect import signature
from typing import Any, NoReturn

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, TextNode

from wim_integrations.llama_index.chat_model import as_kernel
from wim_integrations.llama_index.events import Emitter, paced
from wim_integrations.llama_index.nodes import NodeReading, Order, check_reading_options
from wim_integrations.options import OPTION_NAMES, check_kernel, check_names, leaning_to_recall
from wim_kernel import EmptyDocumentError, Event, Margin, MarginsDone, Options, WimKernel
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.copying import refuse_to_pickle
from wim_kernel.common.relay import alast_of, arelay, last_of, relay
from wim_kernel.run.options import parse_options


class WimNodePostprocessor(BaseNodePostprocessor):
    """Reads nodes as one document, and replaces them by kept margins as new nodes, with their relevance as score.

    A margin's node has its first source node's metadata, and that node as ``SOURCE``; ``metadata["wim"]`` is the
    margin's place (see `NodeReading.margin_data`). By default margins are verbatim: whole sentences of the nodes.

    The synthesizer sees kept margins only, so that a dropped passage is lost. The default of ``threshold`` therefore
    favours recall: 0.1 if relevance is a probability of evidence, as by default (the kernel's default is 0.25, for
    answers behind the whole document). With other scores, ``top_k`` or ``keep`` it is the kernel's default.

    Args:
        kernel: the kernel, or a language model.
        callback_manager: the manager of LlamaIndex's older callbacks.
        order: ``"given"``, or ``"document"`` to sort nodes by document and position.
        chunk_tokens: most tokens of a chunk; longer nodes are split.
        join_small: whether small adjacent nodes of one document share a chunk.
        options: the kernel's `Options` as a dict, in addition to options given by name.
    """

    order: Order = "given"
    chunk_tokens: int | None = None
    join_small: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    _kernel: WimKernel = PrivateAttr()

    def __init__(
        self,
        kernel: WimKernel | LLM,
        *,
        callback_manager: CallbackManager | None = None,
        order: Order = "given",
        chunk_tokens: int | None = None,
        join_small: bool = False,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        kernel = as_kernel(kernel)
        check_kernel(kernel, "WimNodePostprocessor")
        assert isinstance(kernel, WimKernel)
        options = {**(options or {}), **more}
        check_names(options, [*OPTION_NAMES, *_ARGUMENTS], "WimNodePostprocessor")
        parse_options({**options})  # type: ignore[typeddict-item]
        check_reading_options(order, chunk_tokens)
        fields: dict[str, Any] = {"order": order, "chunk_tokens": chunk_tokens, "join_small": join_small}
        fields |= {"options": options, "callback_manager": callback_manager or CallbackManager()}
        super().__init__(**fields)
        self._kernel = kernel

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)

    @classmethod
    def class_name(cls) -> str:
        """The postprocessor's name."""
        return "WimNodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        source, question = self._read(nodes), _question(query_bundle)
        if source is None:
            return []
        options = self._options(source)
        stream = source.reading.stream_margins(
            question, **options
        )  # raises before the emitter opens an event
        emitter = Emitter(self.callback_manager, source, question, options)
        return _margin_nodes(source, last_of(relay(stream, emitter)))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        source, question = await in_thread(self._read, nodes), _question(query_bundle)
        if source is None:
            return []
        options = self._options(source)
        stream = source.reading.astream_margins(question, **options)
        emitter = Emitter(self.callback_manager, source, question, options)
        return _margin_nodes(source, await alast_of(arelay(stream, emitter)))

    def _read(self, nodes: list[NodeWithScore]) -> NodeReading | None:
        try:
            return NodeReading(
                self._kernel,
                [item.node for item in nodes],
                order=self.order,
                chunk_tokens=self.chunk_tokens,
                join_small=self.join_small,
            )
        except EmptyDocumentError:
            return None

    def _options(self, source: NodeReading) -> Options:
        options: Options = {"margin_style": "verbatim", **self.options}  # type: ignore[typeddict-item]
        return paced(source, leaning_to_recall(options, self._kernel), self.callback_manager)


def _question(query: QueryBundle | None) -> str:
    if query is None:
        raise ValueError("Margins are written for a question: give postprocess_nodes a query.")
    return query.query_str


def _margin_nodes(source: NodeReading, last: Event | None) -> list[NodeWithScore]:
    assert isinstance(last, MarginsDone)
    kept = (margin for margin in last.margins if margin.kept and margin.text.strip())
    return [NodeWithScore(node=_margin_node(source, margin), score=margin.relevance) for margin in kept]


def _margin_node(source: NodeReading, margin: Margin) -> TextNode:
    data = source.margin_data(margin)
    first = source.nodes[source.nodes_of(margin)[0]]
    place = {name: data[name] for name in ("index", "evidence", "node_ids", "ref_doc_ids", "spans", "quotes")}
    return TextNode(
        text=margin.text,
        metadata={**first.metadata, "wim": place},
        excluded_llm_metadata_keys=[*first.excluded_llm_metadata_keys, "wim"],
        excluded_embed_metadata_keys=[*first.excluded_embed_metadata_keys, "wim"],
        relationships={NodeRelationship.SOURCE: first.as_related_node_info()},
    )


_ARGUMENTS = tuple(signature(WimNodePostprocessor).parameters)
