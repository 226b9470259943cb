"""The types of the runnables' inputs and outputs. At run time they are plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages.content import Citation
from typing_extensions import TypedDict

Inputs = Mapping[str, Any]
Outputs = Mapping[str, Any]


class Quote(TypedDict):
    """A range of characters of a document's page content; None if the ``document_prompt`` changes the text."""

    start: int | None
    end: int | None


class Margins(list["MarginData"]):
    """The margins of a stream's chunk. In a sum, a revised margin replaces the margin with the same index.

    In all other respects it is a plain list.
    """

    def __add__(self, other: Any) -> Margins:  # type: ignore[override]
        by_index: dict[Any, MarginData] = {}
        for margin in (*self, *other):
            by_index[margin["index"]] = margin  # a dict keeps the first one's position
        return Margins(by_index.values())

    def __radd__(self, other: list[Any]) -> Margins:
        return Margins(other) + self


class MarginData(TypedDict):
    """A margin; see `DocumentReading.margin_data`."""

    index: int
    text: str
    relevance: float
    kept: bool
    evidence: dict[str, float]
    note: str
    document: int
    metadata: dict[str, Any]
    start: int | None
    end: int | None
    quotes: list[Quote]


class _Cited(TypedDict, total=False):
    citations: list[Citation]


class WimOutput(_Cited):
    """The output of `WimRunnable` and `WimAnswer`.

    Attributes:
        answer: the answer's text.
        margins: every margin, in reading order.
        usage: tokens that the call cost; see `wim_kernel.Usage`.
        timings: seconds the call took; see `wim_kernel.Timings`.
        stopped_early: whether reading stopped before the documents' end.
        citations: with the option ``citations``, the answer's citations, as LangChain annotates messages with them.
    """

    answer: str
    margins: list[MarginData]
    usage: dict[str, Any]
    timings: dict[str, Any]
    stopped_early: bool


class WimMarginsOutput(TypedDict):
    """The output of `WimMargins`; ``chunks_read`` is for `WimAnswer`."""

    margins: list[MarginData]
    usage: dict[str, Any]
    timings: dict[str, Any]
    chunks_read: int
