"""A reply that decides with its first words, and is the note if it says yes: one request for both.

The request is for the whole note. When the reply's first token has come, with its log-probabilities (or, from servers
that report none, its first words), the gate decides. If the answer is no, the stream is closed, which stops the
server's work. If it is yes and the reply begins as a decided one does, the rest of it is the note.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wim_kernel.engines.base import Gate
from wim_kernel.engines.server.deltas import StreamDelta, UsageReport

if TYPE_CHECKING:
    from wim_kernel.engines.server.branch_state import BranchState

WORDS = 4
"""Deltas after which a reply without log-probabilities has said yes or no, if it does so at all."""


@dataclass
class Reply:
    """A reply so far.

    Attributes:
        text: its text.
        token_ids: its token ids, if the server reports them.
        top: log-probabilities of its first token, by name; empty if the server reports none.
        usage: the server's report, once it has come.
        finish: why it ended, once it has.
        ends: how many characters the text had after each delta.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    top: dict[str, float] = field(default_factory=dict)
    usage: UsageReport | None = None
    finish: str | None = None
    ends: list[int] = field(default_factory=list)

    def add(self, delta: StreamDelta) -> None:
        """Add a delta."""
        if not self.text:
            self.top = self.top or delta.top
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.usage = delta.usage or self.usage
        self.finish = delta.finish or self.finish
        if delta.text:
            self.ends.append(len(self.text))

    @property
    def has_decided(self) -> bool:
        """Whether enough has come to tell the probabilities of choices."""
        return bool(self.top and self.ends) or len(self.ends) >= WORDS or self.finish is not None

    def begins_with(self, ids: Sequence[int], text: str) -> Literal["yes", "no", "not yet"]:
        """Whether the reply begins with a choice, in the choice's own tokens.

        Args:
            ids: the choice's token ids.
            text: the choice's text, by which it is told where the server reports no ids.
        """
        if self.token_ids:
            count = len(ids)
            if self.token_ids[:count] == list(ids):
                return "yes"
            same = self.token_ids == list(ids)[: len(self.token_ids)]
        else:
            if self.text.startswith(text) and len(text) in self.ends:
                return "yes"
            same = text.startswith(self.text)
        return "not yet" if same and self.finish is None else "no"


class BranchGate:
    """The gate of one decode, as requests ask it: about one branch at a time, in a thread that nobody else waits for.

    The consumer's thread may be paused between two steps of the decode. A request that waited for it would hold its
    place among the requests that are limited in number, and whatever the consumer asks meanwhile would wait for that.

    Args:
        gate: the gate, which runs in the context of the caller; None if every branch goes on.
    """

    def __init__(self, gate: Gate | None) -> None:
        self._gate = gate
        self._context = contextvars.copy_context()
        self._turn = asyncio.Lock()

    async def lets(self, state: BranchState) -> bool:
        """Whether a branch whose scores are known goes on.

        Being cancelled it waits for the gate, which no thread can be made to leave: once a stream is closed, nothing
        scores or changes its margins any more.
        """
        if self._gate is None:
            return True
        async with self._turn:
            asked = asyncio.ensure_future(asyncio.to_thread(self._context.run, self._ask, state))
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                while not asked.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([asked])
                asked.exception()  # nobody else will take it
                raise

    def _ask(self, state: BranchState) -> bool:
        assert self._gate is not None
        try:
            return bool(self._gate([state.index], [state.scores])[0])
        except StopIteration as error:  # no future can hold it, and whoever waits would wait for ever
            raise RuntimeError("A relevance score raised StopIteration.") from error
