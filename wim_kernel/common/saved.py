"""Results and events from plain data, such as a checkpoint holds: the reverse of their ``to_dict``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wim_kernel.common import plain_data
from wim_kernel.common.citations import Citation
from wim_kernel.common.errors import MarginsError
from wim_kernel.common.events import (
    Answered,
    AnswerToken,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
)
from wim_kernel.common.margins import Margin, Timings, Usage, WimResult

Data = Mapping[Any, Any]


def event_from_dict(data: Mapping[str, Any]) -> Event:
    """Read back an event from what its ``to_dict`` wrote. What only a run has, such as tokens of branches, is lost.

    Raises:
        MarginsError: if it is something else.
    """
    try:
        known = plain_data.mapping("data", data)
        kind = plain_data.string("event", known.get("event"))
        if kind not in _EVENTS:
            raise plain_data.WrongTypeError("event", f"one of {', '.join(_EVENTS)}", kind)
        return _EVENTS[kind](known)
    except plain_data.WrongTypeError as error:
        raise MarginsError(f"event_from_dict reads what an event's to_dict wrote: {error}.") from error


def result_from_dict(data: Mapping[str, Any]) -> WimResult:
    """See `WimResult.from_dict`."""
    try:
        known = plain_data.mapping("data", data)
        return WimResult(
            answer=plain_data.string("answer", known.get("answer")),
            margins=_margins(known),
            usage=_usage(known),
            timings=_timings(known),
            stopped_early=plain_data.truth("stopped_early", known.get("stopped_early", False)),
            volumes=plain_data.count("volumes", known.get("volumes", 1)),
            question=plain_data.string("question", known.get("question", "")),
            relevance_by=plain_data.string("relevance_by", known.get("relevance_by", "")),
            citations=tuple(map(Citation.from_dict, _listed("citations", known))),
            dropped_markers=plain_data.count("dropped_markers", known.get("dropped_markers", 0)),
        )
    except plain_data.WrongTypeError as error:
        raise MarginsError(f"WimResult.from_dict reads what WimResult.to_dict wrote: {error}.") from error


def _listed(name: str, data: Data) -> list[Any]:
    return list(plain_data.sequence(name, data.get(name, ())))


def _margins(data: Data) -> tuple[Margin, ...]:
    return tuple(map(Margin.from_dict, _listed("margins", data)))


def _usage(data: Data) -> Usage:
    known = plain_data.mapping("usage", data.get("usage"))
    unreported = ("cached_tokens", "cache_write_tokens")  # None where nobody reports them
    counts: dict[str, Any] = {
        name: (plain_data.count_or_none if name in unreported else plain_data.count)(name, known[name])
        for name in Usage.__dataclass_fields__
        if name in known
    }
    return Usage(**counts)


def _timings(data: Data) -> Timings:
    known = plain_data.mapping("timings", data.get("timings"))
    given = {name: known[name] for name in Timings.__dataclass_fields__ if known.get(name) is not None}
    return Timings(**{name: plain_data.number(name, value) for name, value in given.items()})


def _count(name: str, data: Data) -> int:
    return plain_data.count(name, data.get(name))


def _question(data: Data) -> int:
    return plain_data.count("question", data.get("question", 0))


def _chunk_read(data: Data) -> ChunkRead:
    counts = {name: _count(name, data) for name in ("index", "chunks", "tokens", "total_tokens")}
    return ChunkRead(**counts, cached=plain_data.truth("cached", data.get("cached")))


_EVENTS: dict[str, Callable[[Data], Event]] = {
    "chunk_read": _chunk_read,
    "margin_written": lambda data: MarginWritten(Margin.from_dict(data.get("margin", {})), _question(data)),
    "margin_revised": lambda data: MarginRevised(Margin.from_dict(data.get("margin", {})), _question(data)),
    "margins_done": lambda data: MarginsDone(
        _margins(data), _usage(data), _timings(data), _count("chunks_read", data)
    ),
    "answer_token": lambda data: AnswerToken(plain_data.string("text", data.get("text")), _question(data)),
    "answered": lambda data: Answered(result_from_dict(data.get("result", {})), _question(data)),
}
