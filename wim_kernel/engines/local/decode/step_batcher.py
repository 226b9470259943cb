"""Continuous batching: pending decode steps of several callers run in one forward pass.

Each caller keeps its own rows. The holder of the model's lock runs its decode step together with all pending steps that
fit, so that one pass over the weights serves every caller, whenever each of them joined. (Continuous batching: Orca,
OSDI 2022. There is no scheduler thread here, the lock's holder does the work: flat combining, Hendler and others, SPAA
2010.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from wim_kernel.common import forks
from wim_kernel.engines.local.decode.fair_lock import Account, FairLock, grace_period
from wim_kernel.engines.local.rows.base import BranchRows, StepOutput

logger = logging.getLogger(__name__)

MAX_MISSES = 3
"""Grace periods in a row after which the batcher waits no longer for a session that is late each time."""


class DecodeSession:
    """One caller's decoding, from its prompts to its last step.

    Args:
        batcher: runs the session's steps, alone or with those of others.
        account: the caller's account of the model's time.
        batch: the caller's branches as rows.
    """

    def __init__(self, batcher: StepBatcher, account: Account, batch: BranchRows) -> None:
        self.batcher = batcher
        self.account = account
        self.batch = batch
        self.pending_tokens: list[int] | None = None  # of a step that nobody has run yet
        self.ahead = False  # whether that step may launch the one after it
        self.output: StepOutput | None = None
        self.runs_alone = False  # set when a joint pass has failed
        self.has_stepped = False
        self.misses = 0

    def model_lock(self) -> AbstractContextManager[None]:
        """Hold the model's lock for a pass over prompts."""
        return self.batcher.lock.held_by(self.account, will_return=True)

    def step(self, tokens: list[int], *, ahead: bool = False) -> StepOutput:
        """Append one token to every row of the batch.

        Args:
            tokens: one token id for each row.
            ahead: see `wim_kernel.engines.local.rows.base.BranchRows.step`.

        Returns:
            The logits of the step, which this caller or another one ran.
        """
        lock = self.batcher.lock
        with lock.changed:
            self.pending_tokens, self.ahead, self.output, self.has_stepped = tokens, ahead, None, True
        try:
            if lock.acquire(self.account, unless=lambda: self.output is not None):
                try:
                    return self._run(tokens)
                finally:
                    self.batcher.last_step_seconds = lock.release(will_return=True)
        finally:
            with lock.changed:
                self.pending_tokens = None
        assert self.output is not None
        self.batch.advance()
        return self.output

    def _run(self, tokens: list[int]) -> StepOutput:
        """Run this step together with the pending ones that fit. The caller holds the lock."""
        others = self.batcher.pending_steps(self)
        if others:
            try:
                return self._run_with(others, tokens)
            except Exception as error:  # too little memory, or something about one of them
                count = 1 + len(others)
                logger.warning("A decode step of %d callers failed; each goes on alone: %s", count, error)
                for session in (self, *(session for session, _ in others)):
                    session.runs_alone = True
        return self.batch.step(tokens, ahead=self.ahead)

    def _run_with(self, others: list[tuple[DecodeSession, list[int]]], tokens: list[int]) -> StepOutput:
        begun = time.perf_counter()
        steps = [(session.batch, pending) for session, pending in others]
        ahead = self.ahead and all(session.ahead for session, _ in others)
        own_output, *outputs = self.batch.step_together([(self.batch, tokens), *steps], ahead=ahead)
        with self.batcher.lock.changed:
            for (session, _), output in zip(others, outputs, strict=True):
                session.output, session.pending_tokens = output, None
                session.account.charge(time.perf_counter() - begun)
            self.batcher.lock.changed.notify_all()
        self.batch.advance()
        return own_output


class StepBatcher:
    """The sessions that decode at the same time.

    Args:
        lock: the lock around the model.
        max_rows: most rows of one pass.
    """

    def __init__(self, lock: FairLock, max_rows: int) -> None:
        self.lock = lock
        self.max_rows = max_rows
        self.last_step_seconds = 0.0
        self._sessions: list[DecodeSession] = []
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Forget all sessions: their threads live in the parent process."""
        self._sessions = []

    @property
    def busy(self) -> bool:
        """Whether any session is open."""
        return bool(self._sessions)

    @contextmanager
    def session(self, make_batch: Callable[[], BranchRows]) -> Iterator[DecodeSession]:
        """Open a session. ``make_batch`` is called under the model's lock."""
        account = Account()
        with self.lock.held_by(account, will_return=True):
            session = DecodeSession(self, account, make_batch())
        with self.lock.changed:
            self._sessions.append(session)
        try:
            yield session
        finally:
            with self.lock.changed:
                if session in self._sessions:  # not after a fork
                    self._sessions.remove(session)
                self.lock.wont_return(session.account)
                self.lock.asked.notify_all()

    def pending_steps(self, leader: DecodeSession) -> list[tuple[DecodeSession, list[int]]]:
        """Other sessions whose pending steps can join the leader's, with their tokens.

        Waits up to a grace period for sessions that have just stepped and will probably ask again.
        """
        deadline = time.perf_counter() + grace_period(self.last_step_seconds)
        with self.lock.changed:
            while late := [session for session in self._sessions if self._is_expected(session, leader)]:
                left = deadline - time.perf_counter()
                if left <= 0:
                    break
                self.lock.asked.wait(left)
            for session in late:
                session.misses += 1
            return self._collect(leader)

    def _is_expected(self, session: DecodeSession, leader: DecodeSession) -> bool:
        """Whether a session fits the leader's pass, has no step pending, and will probably ask for one soon."""
        likely = session.has_stepped and session.pending_tokens is None and session.misses < MAX_MISSES
        return likely and session is not leader and self._fits(session, leader)

    def _fits(self, session: DecodeSession, leader: DecodeSession) -> bool:
        key = leader.batch.batch_key
        alone = session.runs_alone or leader.runs_alone
        return key is not None and session.batch.batch_key == key and not alone

    def _collect(self, leader: DecodeSession) -> list[tuple[DecodeSession, list[int]]]:
        """Pending steps that fit the leader's, up to `max_rows` rows in all."""
        rows, steps = len(leader.pending_tokens or ()), []
        for session in self._sessions:
            if session is leader or session.pending_tokens is None or not self._fits(session, leader):
                continue
            session.misses = 0
            if rows + len(session.pending_tokens) <= self.max_rows:
                rows += len(session.pending_tokens)
                steps.append((session, session.pending_tokens))
        return steps
