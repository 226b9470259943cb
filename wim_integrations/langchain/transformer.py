"""Margins as a projection of LangGraph's run streams: ``run.extensions["wim"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from langgraph.stream import ProtocolEvent, StreamChannel, StreamTransformer
from typing_extensions import TypedDict

from wim_integrations.langchain.events import EVENTS


class WimStreamEvent(TypedDict):
    """An item of ``run.extensions["wim"]``.

    Attributes:
        event: ``wim_chunk``, ``wim_margin``, ``wim_margin_revised`` or ``wim_answer``.
        data: the event's data, plain JSON.
        namespace: the path of the graph that emitted it; empty for the run's own graph.
    """

    event: str
    data: dict[str, Any]
    namespace: list[str]


class WimTransformer(StreamTransformer):
    """Collects the events of all readings in a run, those of subgraphs included, as ``run.extensions["wim"]``.

    For ``stream_events`` and ``astream_events`` of a graph or an agent with ``version="v3"``. Give the class, not an
    instance: ``transformers=[WimTransformer]``. Raw event streams carry each item, too, as ``custom:wim``.

    Example:
        >>> run = graph.stream_events(  # doctest: +SKIP
        ...     {"question": "Who owned the ship?", "documents": documents},
        ...     version="v3",
        ...     transformers=[WimTransformer],
        ... )
        >>> for item in run.extensions["wim"]:  # doctest: +SKIP
        ...     print(item["event"], item["data"])
    """

    required_stream_modes: ClassVar[tuple[str, ...]] = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._channel: StreamChannel[WimStreamEvent] = StreamChannel("wim")

    def init(self) -> dict[str, Any]:
        """The projection's key and its channel."""
        return {"wim": self._channel}

    def process(self, event: ProtocolEvent) -> bool:
        """Push an event of a reading to the channel; every event stays in the run's stream."""
        params = event["params"]
        data, path = params["data"], params["namespace"]
        within = tuple(path[: len(self.scope)]) == self.scope
        if (
            event["method"] == "custom"
            and within
            and isinstance(data, Mapping)
            and data.get("event") in EVENTS
        ):
            self._channel.push(
                WimStreamEvent(event=data["event"], data=data["data"], namespace=path[len(self.scope) :])
            )
        return True
