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


class MarginData(TypedDict):
    """A margin; see `DocumentReading.margin_data`."""

    index: int
    text: str
    relevance: float
    kept: bool
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
