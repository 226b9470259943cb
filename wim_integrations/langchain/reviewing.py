"""Reviews: a person's reply to margins, which is changed margins, an approval, or decisions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from wim_integrations.langchain.decisions import DECISIONS, Decision, decided, is_decided
from wim_kernel import Margin, Reading
from wim_kernel.common import forks
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.given_margins import is_approval

REMEMBERED = 256  # most questions of one engine whose margins are remembered
Key = tuple[str, tuple[str, ...]]


def _renew_after_fork() -> None:
    global _lock
    _lock = Lock()


_lock = Lock()
forks.in_child(_renew_after_fork)
_written: WeakKeyDictionary[AnyEngine, OrderedDict[Key, tuple[Margin, ...]]] = WeakKeyDictionary()


def reviewed(
    written: Sequence[Any], reply: Any, *, allowed_decisions: Sequence[Decision] = DECISIONS
) -> Sequence[Any]:
    """The margins after a review.

    For a graph's node that shows margins. Unlike an approval or decisions passed to `WimAnswer`, it works after a
    restart.

    Args:
        written: the margins that were written.
        reply: True or ``"approve"`` for the margins as they are; the changed margins; or ``{"decisions": [...]}``, one
            for each margin of `review_request`.
        allowed_decisions: the decisions that the person may take.

    Raises:
        MarginsError: for decisions that are not one for each margin shown, not allowed, or not of their shape.

    Example:
        >>> builder.add_node(  # doctest: +SKIP
        ...     "review", lambda state: {"margins": reviewed(state["margins"], interrupt(state["margins"]))}
        ... )
    """
    if is_decided(reply):
        return decided(written, reply, allowed_decisions)
    chosen: Sequence[Any] = written if is_approval(reply) else reply
    return chosen


def remember(reading: Reading, question: str, margins: Sequence[Margin]) -> None:
    """Remember margins in this process, for an approval."""
    with _lock:
        by_question = _written.setdefault(reading.engine, OrderedDict())
        key = _key(reading, question)
        by_question.pop(key, None)
        by_question[key] = tuple(margins)
        while len(by_question) > REMEMBERED:
            by_question.popitem(last=False)


def remembered(reading: Reading, question: str) -> tuple[Margin, ...] | None:
    """The margins that were written last for a question about the same chunks; None if not remembered."""
    with _lock:
        return _written.get(reading.engine, OrderedDict[Key, tuple[Margin, ...]]()).get(
            _key(reading, question)
        )


def _key(reading: Reading, question: str) -> Key:
    return question, tuple(chunk.text for chunk in reading.chunks)
