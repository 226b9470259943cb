"""What comes back from a person who was shown margins: the margins as changed, or an approval of them as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from wim_kernel import Margin, Reading
from wim_kernel.common import forks
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.given_margins import is_approval

MOST = 256
Key = tuple[str, tuple[str, ...]]


def _renew_after_fork() -> None:
    global _lock
    _lock = Lock()


_lock = Lock()
forks.in_child(_renew_after_fork)
_written: WeakKeyDictionary[AnyEngine, OrderedDict[Key, tuple[Margin, ...]]] = WeakKeyDictionary()


def reviewed(written: Sequence[Any], reply: Any) -> Sequence[Any]:
    """The margins that a person's reply leaves: ``written`` if it approves them (True, ``"approve"``), or the reply.

    For the node of a graph that shows margins; unlike an approval that is handed on, it survives a restart.

    Example:
        >>> builder.add_node(  # doctest: +SKIP
        ...     "review", lambda state: {"margins": reviewed(state["margins"], interrupt(state["margins"]))}
        ... )
    """
    chosen: Sequence[Any] = written if is_approval(reply) else reply
    return chosen


def remember(reading: Reading, question: str, margins: Sequence[Margin]) -> None:
    """Keep margins, for an approval of them in this process."""
    with _lock:
        mine = _written.setdefault(reading.engine, OrderedDict())
        key = _key(reading, question)
        mine.pop(key, None)
        mine[key] = tuple(margins)
        while len(mine) > MOST:
            mine.popitem(last=False)


def remembered(reading: Reading, question: str) -> tuple[Margin, ...] | None:
    """The margins that were last written for a question about the same chunks, if they are known."""
    with _lock:
        return _written.get(reading.engine, OrderedDict[Key, tuple[Margin, ...]]()).get(
            _key(reading, question)
        )


def _key(reading: Reading, question: str) -> Key:
    return question, tuple(chunk.text for chunk in reading.chunks)
