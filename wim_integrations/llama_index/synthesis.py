"""The state of a call of ``synthesize``, and how ``get_response`` finds it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from wim_integrations.llama_index.citing import citation_blocks
from wim_integrations.llama_index.nodes import NodeReading
from wim_kernel import Answered, Event, Margin, MarginRevised, MarginWritten


@dataclass
class SynthesisState:
    """The state of one call of ``synthesize``, which ``get_response`` needs and does not get as arguments.

    Attributes:
        owner: the synthesizer that was called.
        nodes: the nodes.
        source: the nodes' reading; None before it is made.
        margins: the margins so far.
        metadata: the response's metadata besides the node map; filled during the call.
    """

    owner: BaseSynthesizer
    nodes: Sequence[NodeWithScore]
    source: NodeReading | None = None
    margins: list[Margin] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=lambda: {"margins": [], "usage": {}, "timings": {}})

    def record(self, event: Event) -> None:
        """Add what an event tells to the margins and the metadata."""
        assert self.source is not None
        if isinstance(event, MarginWritten):
            self.margins.append(event.margin)
            self.metadata["margins"].append(self.source.margin_data(event.margin))
            self.metadata["margins"].sort(key=lambda data: data["index"])
        elif isinstance(event, MarginRevised):
            position = [margin.index for margin in self.margins].index(event.margin.index)
            self.margins[position] = event.margin
            data = self.source.margin_data(event.margin)
            self.metadata["margins"] = [
                data if other["index"] == data["index"] else other for other in self.metadata["margins"]
            ]
        elif isinstance(event, Answered):
            self.margins = list(event.result.margins)
            self.metadata.update(self.source.result_data(event.result))
            if event.result.citations:
                blocks = citation_blocks(event.result, self.source)
                self.metadata["citations"] = [block.model_dump() for block in blocks]


_state: ContextVar[SynthesisState | None] = ContextVar("wim_synthesis", default=None)


@contextmanager
def synthesis(owner: BaseSynthesizer, nodes: Sequence[NodeWithScore]) -> Generator[None, None, None]:
    """A context in which ``get_response`` finds the nodes of its texts."""
    token = _state.set(SynthesisState(owner, nodes))
    try:
        yield
    finally:
        _state.reset(token)


def current_synthesis() -> SynthesisState | None:
    """The state of the call of ``synthesize`` that is under way, if one is."""
    return _state.get()


def synthesis_of(owner: BaseSynthesizer, texts: Sequence[str]) -> SynthesisState:
    """The current call's state if ``texts`` are its nodes' texts; otherwise a new one, with a node per text."""
    state = _state.get()
    is_own = state is not None and state.owner is owner and state.source is None
    if state and is_own and list(texts) == [item.node.get_content(MetadataMode.LLM) for item in state.nodes]:
        return state
    nodes = [TextNode(text=text, id_=str(index)) for index, text in enumerate(texts)]
    return SynthesisState(owner, [NodeWithScore(node=node) for node in nodes])
