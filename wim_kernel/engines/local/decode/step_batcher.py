"""Decode steps of different callers, run in one forward pass where they come together.

Each caller keeps its own batch of branches. Whoever has the turn runs the steps of all who wait with one, so that a
step reads the model's weights once however many callers there are, and whenever each of them came. (Continuous
batching, Orca, OSDI 2022; here without a scheduler of its own: flat combining, Hendler and others, SPAA 2010.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from wim_kernel.common import forks
from wim_kernel.engines.local.decode.fair_lock import Share, Turn, patience
from wim_kernel.engines.local.rows.base import Batch, Next

logger = logging.getLogger(__name__)

MISSES = 3  # one who came late so often in a row is no longer waited for


class Seat:
    """One caller's place among those who decode.

    Args:
        together: where.
        share: the caller's, of the model's time.
        batch: the caller's branches.
    """

    def __init__(self, together: Together, share: Share, batch: Batch) -> None:
        self.together = together
        self.share = share
        self.batch = batch
        self.wanted: list[int] | None = None  # the tokens of a step that nobody has run yet
        self.found: Next | None = None
        self.alone = False  # the last pass together with others failed
        self.began = False
        self.missed = 0

    def turn(self) -> AbstractContextManager[None]:
        """A turn at the model, for a pass over prompts."""
        return self.together.turn.of(self.share, returning=True)

    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append one token to every row of the batch; what may come next.

        Args:
            tokens: one for each row.
            ahead: see `wim_kernel.engines.local.decode.decoder.Batch.step`.
        """
        turn = self.together.turn
        with turn.changed:
            self.wanted, self.found, self.began = tokens, None, True
        try:
            if turn.acquire(self.share, unless=lambda: self.found is not None):
                try:
                    return self._run(tokens, ahead)
                finally:
                    self.together.took = turn.release(returning=True)
        finally:
            with turn.changed:
                self.wanted = None
        assert self.found is not None
        self.batch.took_part()
        return self.found

    def _run(self, tokens: list[int], ahead: bool) -> Next:
        """With the turn: run this step, and those of others that can be run along with it."""
        others = self.together.company(self)
        if others:
            try:
                return self._run_with(others, tokens)
            except Exception as error:  # too little memory, or something about one of them
                count = 1 + len(others)
                logger.warning("A decode step of %d callers failed; each goes on alone: %s", count, error)
                for seat in (self, *(seat for seat, _ in others)):
                    seat.alone = True
        return self.batch.step(tokens, ahead=ahead)

    def _run_with(self, others: list[tuple[Seat, list[int]]], tokens: list[int]) -> Next:
        begun = time.perf_counter()
        steps = [(seat.batch, theirs) for seat, theirs in others]
        mine, *theirs = self.batch.step_together([(self.batch, tokens), *steps])
        with self.together.turn.changed:
            for (seat, _), found in zip(others, theirs, strict=True):
                seat.found, seat.wanted = found, None
                seat.share.charge(time.perf_counter() - begun)
            self.together.turn.changed.notify_all()
        self.batch.took_part()
        return mine


class Together:
    """Those who decode at the same time.

    Args:
        turn: at the model.
        most_rows: of one pass.
    """

    def __init__(self, turn: Turn, most_rows: int) -> None:
        self.turn = turn
        self.most_rows = most_rows
        self.took = 0.0  # seconds, the last step
        self._seats: list[Seat] = []
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Nobody decodes: those threads are the parent's."""
        self._seats = []

    @property
    def busy(self) -> bool:
        """Whether anybody is decoding."""
        return bool(self._seats)

    @contextmanager
    def seat(self, batch: Callable[[], Batch]) -> Iterator[Seat]:
        """Take part with a batch, which is made in a turn."""
        share = Share()
        with self.turn.of(share, returning=True):
            seat = Seat(self, share, batch())
        with self.turn.changed:
            self._seats.append(seat)
        try:
            yield seat
        finally:
            with self.turn.changed:
                if seat in self._seats:  # not after a fork
                    self._seats.remove(seat)
                self.turn.leave(seat.share)
                self.turn.changed.notify_all()

    def company(self, mine: Seat) -> list[tuple[Seat, list[int]]]:
        """Those whose steps can be run along with one, and their tokens; waits a moment for who will be right back."""
        deadline = time.perf_counter() + patience(self.took)
        with self.turn.changed:
            while missing := [seat for seat in self._seats if self._is_awaited(seat, mine)]:
                left = deadline - time.perf_counter()
                if left <= 0:
                    break
                self.turn.changed.wait(left)
            for seat in missing:
                seat.missed += 1
            return self._of_those_who_wait(mine)

    def _is_awaited(self, seat: Seat, mine: Seat) -> bool:
        """Whether a seat could come along, has made a step, and is likely to be right back."""
        likely = seat.began and seat.wanted is None and seat.missed < MISSES
        return likely and seat is not mine and self._fits(seat, mine)

    def _fits(self, seat: Seat, mine: Seat) -> bool:
        company = mine.batch.company
        return company is not None and seat.batch.company == company and not (seat.alone or mine.alone)

    def _of_those_who_wait(self, mine: Seat) -> list[tuple[Seat, list[int]]]:
        rows, found = len(mine.wanted or ()), []
        for seat in self._seats:
            if seat is mine or seat.wanted is None or not self._fits(seat, mine):
                continue
            seat.missed = 0
            if rows + len(seat.wanted) <= self.most_rows:
                rows += len(seat.wanted)
                found.append((seat, seat.wanted))
        return found
