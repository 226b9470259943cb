"""Turns at the model: whoever has had least of it goes next, and who will be right back is waited for a moment."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from wim_kernel.common import forks

PATIENCE = 0.2
"""For how long one who will be right back is waited for, as a part of what the last turn took."""
MOST_PATIENCE = 0.02  # seconds
CREDIT = 2.0
"""Most seconds that a share saves up while it asks for no turns."""


def patience(took: float) -> float:
    """For how many seconds one who will be right back is waited for, after a turn of ``took``."""
    return min(MOST_PATIENCE, PATIENCE * took)


@dataclass(eq=False)
class Share:
    """What one caller has had of a `Turn`.

    Attributes:
        had: seconds, and what those have had who have had least when it came; None before that.
    """

    had: float | None = None

    def charge(self, seconds: float) -> None:
        """Put down what was had."""
        self.had = (self.had or 0.0) + seconds


@dataclass(eq=False, frozen=True)
class _Wish:
    had: float
    new: bool
    ticket: int
    share: Share

    @property
    def rank(self) -> tuple[float, bool, int]:
        """Who goes first: the least, and of equals newcomers."""
        return self.had, not self.new, self.ticket


class Turn:
    """A lock for work of very different lengths, such as a decode step and the reading of a chunk.

    Of those who wait, the one who has had least time goes next, of equals a newcomer, then the first to come: several
    short turns go to a long one, nobody starves, and a newcomer begins with what those have had who have had least
    (start-time fair queueing, Goyal and others, 1996). A caller who gave up its turn saying that it will be right back,
    and has had less than those who wait, is waited for as long as `PATIENCE` says: otherwise long turns would slip in
    between all of its short ones.

    As a context manager it is a plain lock, first come, first served. Not reentrant.

    Attributes:
        changed: guards everything here, and is notified of every change.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._least = 0.0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Nobody waits and nobody has the turn: those threads are the parent's."""
        self.changed = threading.Condition()
        self._waiting: list[_Wish] = []
        self._holder: tuple[_Wish, float] | None = None  # and since when
        self._expected: tuple[Share, float] | None = None  # and until when

    def acquire(self, share: Share, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a turn.

        Args:
            share: whose.
            unless: asked, under the lock, after every change; once it says yes there is no need for a turn any more.

        Returns:
            Whether it is our turn; False if ``unless`` said yes.

        Raises:
            ForkError: if the model cannot be used in this process.
        """
        forks.check(self)
        with self.changed:
            new = share.had is None
            share.had = self._least if share.had is None else max(share.had, self._least - CREDIT)
            wish = _Wish(share.had, new, next(self._tickets), share)
            try:
                self._waiting.append(wish)
                self.changed.notify_all()
                while not unless():
                    if self._may_go(wish):
                        self._holder, self._expected = (wish, time.perf_counter()), None
                        return True
                    self.changed.wait(self._patience())
                return False
            except BaseException:  # an interrupt
                if self._holder is not None and self._holder[0] is wish:
                    self._holder = None
                raise
            finally:
                if wish in self._waiting:
                    self._waiting.remove(wish)
                self.changed.notify_all()

    def release(self, *, returning: bool = False) -> float:
        """End a turn; says how many seconds it took.

        Args:
            returning: whether the caller will be right back.
        """
        with self.changed:
            if self._holder is None:  # the process was forked within the turn
                return 0.0
            (wish, since), now = self._holder, time.perf_counter()
            self._holder, share = None, wish.share
            share.charge(now - since)
            # it grows even where newcomers with least of all wait all the time, or they would starve the others
            fair = self._least + (now - since) / (1 + len(self._waiting))
            self._least = max(fair, min([share.had or 0.0, *(wish.had for wish in self._waiting)]))
            if returning:
                self._expected = share, now + patience(now - since)
            self.changed.notify_all()
            return now - since

    def leave(self, share: Share) -> None:
        """Say that one who was to be right back will not be."""
        with self.changed:
            if self._expected is not None and self._expected[0] is share:
                self._expected = None
                self.changed.notify_all()

    @contextmanager
    def of(self, share: Share, *, returning: bool = False) -> Iterator[None]:
        """A turn on a share; see `acquire` and `release`."""
        self.acquire(share)
        try:
            yield
        finally:
            self.release(returning=returning)

    def __enter__(self) -> Turn:
        self.acquire(Share())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _may_go(self, wish: _Wish) -> bool:
        """Whether it is this one's turn: nobody has it, nobody is before it, nobody who has had less is expected."""
        if self._holder is not None or wish is not min(self._waiting, key=lambda other: other.rank):
            return False
        if self._expected is None or self._patience() is None:
            return True
        expected, _ = self._expected
        return expected is wish.share or wish.had <= (expected.had or 0.0)

    def _patience(self) -> float | None:
        """Seconds for which somebody is still expected; None if nobody is."""
        if self._expected is None or self._holder is not None:
            return None
        left = self._expected[1] - time.perf_counter()
        return left if left > 0 else None
