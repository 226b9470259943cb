"""The types of what goes into the runnables and what comes out. At run time they are plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

Inputs = Mapping[str, Any]
Outputs = Mapping[str, Any]


class Quote(TypedDict):
    """Characters of a document's page content; None where the document's prompt hides them."""

    start: int | None
    end: int | None


class Margins(list["MarginData"]):
    """Margins in a stream: when parts are added up, a revised margin takes the place of the one it revises.

    Elsewhere, and to everyone else, it is a list like any other.
    """

    def __add__(self, other: Any) -> Margins:  # type: ignore[override]
        by_index: dict[Any, MarginData] = {}
        for margin in (*self, *other):
            by_index[margin["index"]] = margin  # which keeps the place of the first
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


class WimOutput(TypedDict):
    """What `WimRunnable` and `WimAnswer` give.

    Attributes:
        answer: the answer's text.
        margins: every margin, in reading order.
        usage: tokens the call cost; see `wim_kernel.Usage`.
        timings: seconds the call took; see `wim_kernel.Timings`.
        stopped_early: whether reading stopped before the documents' end.
    """

    answer: str
    margins: list[MarginData]
    usage: dict[str, Any]
    timings: dict[str, Any]
    stopped_early: bool


class WimMarginsOutput(TypedDict):
    """What `WimMargins` gives: as `WimOutput`, and ``chunks_read`` for `WimAnswer`."""

    margins: list[MarginData]
    usage: dict[str, Any]
    timings: dict[str, Any]
    chunks_read: int
