"""A lock around the model that shares its time fairly between callers.

Fair queueing decides who goes next; a short wait for a caller that is about to ask again (anticipatory scheduling, Iyer
and Druschel, SOSP 2001) keeps long jobs from slipping in between all of its short ones.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from wim_kernel.common import forks

GRACE = 0.2
"""The wait for a caller that is about to ask again, as a fraction of how long the last holder kept the lock."""
MAX_GRACE = 0.02  # seconds
MAX_CREDIT = 2.0
"""Seconds of virtual time by which an account may lie behind the others after a pause."""


def grace_period(held: float) -> float:
    """Seconds to wait for a caller that is about to ask again, after the lock was held for ``held`` seconds."""
    return min(MAX_GRACE, GRACE * held)


@dataclass(eq=False)
class Account:
    """One caller's use of a `FairLock`.

    Attributes:
        virtual_time: virtual service time, in seconds. A newcomer starts at the current minimum, so that it cannot
            monopolise the lock. None until the first request.
    """

    virtual_time: float | None = None

    def charge(self, seconds: float) -> None:
        """Add seconds for which the lock was held."""
        self.virtual_time = (self.virtual_time or 0.0) + seconds


@dataclass(eq=False, frozen=True)
class _Waiter:
    """A request for the lock that has not been granted yet."""

    virtual_time: float
    is_new: bool
    ticket: int
    account: Account

    @property
    def rank(self) -> tuple[float, bool, int]:
        """The lowest goes first: least virtual time, then newcomers, then in order of arrival."""
        return self.virtual_time, not self.is_new, self.ticket


class FairLock:
    """A lock for work of very different lengths, such as a decode step and the prefill of a chunk.

    The waiter whose account has the least virtual time goes next; ties go to newcomers, then to the first to come. So
    several short jobs run for each long one, nobody starves, and a newcomer starts at the current minimum (start-time
    fair queueing, Goyal and others, 1996). Who releases the lock with ``will_return`` keeps its place for a grace
    period, unless a waiter has used less: otherwise a long job would slip in after every short one.

    As a context manager it is a plain lock, first come, first served. Not reentrant.

    Attributes:
        changed: the condition that guards all state. It is notified when the lock may be free for somebody who waits.
        asked: a condition on the same state, notified when somebody asks for the lock. Those who wait for the lock do
            not wait for this: if each of many callers woke all others, waking would take longer than a decode step.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._min_virtual_time = 0.0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Forget waiters and holder: their threads live in the parent process."""
        state = threading.RLock()
        self.changed, self.asked = threading.Condition(state), threading.Condition(state)
        self._waiting: list[_Waiter] = []
        self._holder: tuple[_Waiter, float] | None = None  # and when it got the lock
        self._expected: tuple[Account, float] | None = None  # and when its grace period ends

    def acquire(self, account: Account, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the lock.

        Args:
            account: the caller's account.
            unless: checked, under ``changed``, at every wake-up. Once it is true, the call returns without the lock:
                somebody else has done the caller's work.

        Returns:
            True if the caller now holds the lock; False if ``unless`` became true.

        Raises:
            ForkError: if the model cannot be used in this process.
        """
        forks.check(self)
        with self.changed:
            is_new = account.virtual_time is None
            if account.virtual_time is None:
                account.virtual_time = self._min_virtual_time
            account.virtual_time = max(account.virtual_time, self._min_virtual_time - MAX_CREDIT)
            waiter = _Waiter(account.virtual_time, is_new, next(self._tickets), account)
            try:
                self._waiting.append(waiter)
                self.asked.notify_all()
                while not unless():
                    grace = self._grace_left()  # once: it must not end between the two decisions
                    if self._is_next(waiter, grace):
                        self._holder, self._expected = (waiter, time.perf_counter()), None
                        return True
                    self.changed.wait(grace)
                return False
            except BaseException:  # such as KeyboardInterrupt
                if self._holder is not None and self._holder[0] is waiter:
                    self._holder = None
                raise
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                if self._holder is None:
                    self.changed.notify_all()

    def release(self, *, will_return: bool = False) -> float:
        """Release the lock; returns the seconds for which it was held.

        Args:
            will_return: whether the caller is about to ask again.
        """
        with self.changed:
            if self._holder is None:  # the process was forked while the lock was held
                return 0.0
            (waiter, since), now = self._holder, time.perf_counter()
            self._holder, account = None, waiter.account
            account.charge(now - since)
            # the minimum grows even while newcomers at the minimum keep coming, or they would starve the others
            fair = self._min_virtual_time + (now - since) / (1 + len(self._waiting))
            in_use = [account.virtual_time or 0.0, *(waiter.virtual_time for waiter in self._waiting)]
            self._min_virtual_time = max(fair, min(in_use))
            if will_return:
                self._expected = account, now + grace_period(now - since)
            self.changed.notify_all()
            return now - since

    def wont_return(self, account: Account) -> None:
        """Withdraw the ``will_return`` of an account."""
        with self.changed:
            if self._expected is not None and self._expected[0] is account:
                self._expected = None
                self.changed.notify_all()

    @contextmanager
    def held_by(self, account: Account, *, will_return: bool = False) -> Iterator[None]:
        """Hold the lock on an account; see `acquire` and `release`."""
        self.acquire(account)
        try:
            yield
        finally:
            self.release(will_return=will_return)

    def __enter__(self) -> FairLock:
        self.acquire(Account())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_next(self, waiter: _Waiter, grace: float | None) -> bool:
        """Whether the lock is free, this waiter is first, and no account with less time is still expected back."""
        if self._holder is not None or waiter is not min(self._waiting, key=lambda other: other.rank):
            return False
        if self._expected is None or grace is None:
            return True
        expected, _ = self._expected
        return expected is waiter.account or waiter.virtual_time <= (expected.virtual_time or 0.0)

    def _grace_left(self) -> float | None:
        """Seconds left of the current grace period; None if there is none."""
        if self._expected is None or self._holder is not None:
            return None
        left = self._expected[1] - time.perf_counter()
        return left if left > 0 else None
