"""A reply that decides with its first words, and is the note if it says yes: one request for both.

The request is for the whole note. When the reply's first token has come, with its log-probabilities (or, from servers
that report none, its first words), the gate decides. If the answer is no, the stream is closed, which stops the
server's work. If it is yes and the reply begins as a decided one does, the rest of it is the note.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from wim_kernel.engines.server.deltas import StreamDelta, UsageReport
from wim_kernel.engines.server.transport import Emit

if TYPE_CHECKING:
    from wim_kernel.engines.server.branch_requests import BranchState

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


@dataclass(eq=False)
class GateQuestion:
    """A question to the gate, which the caller's thread answers, since the gate may run the application's code.

    Attributes:
        state: the branch.
        reply: takes the gate's answer.
    """

    state: BranchState
    reply: asyncio.Future[bool]

    def answer(self, *, goes_on: bool) -> None:
        """Hand the answer to the loop that runs the requests."""
        self.reply.get_loop().call_soon_threadsafe(self._set, goes_on)

    def _set(self, goes_on: bool) -> None:
        if not self.reply.done():
            self.reply.set_result(goes_on)


async def ask_gate(state: BranchState, emit: Emit[Any]) -> bool:
    """Ask the gate whether a branch whose scores are known goes on."""
    question = GateQuestion(state, asyncio.get_running_loop().create_future())
    emit(question)
    return await question.reply
