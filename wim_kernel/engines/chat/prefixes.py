"""A document's prefix: its text here, and which of its boundaries the provider's cache should hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from wim_kernel.common import forks


class ChatPrefix:
    """A prefix of a document.

    Attributes:
        ids: ids of the text.
        ends: positions at which the head and each chunk end, ascending.
        lock: held by the caller that extends the prefix.
    """

    def __init__(
        self, ids: Sequence[int] = (), ends: Sequence[int] = (), written: dict[int, float] | None = None
    ) -> None:
        self.ids = list(ids)
        self.ends = list(ends)
        self._written = dict(written or {})  # by boundary: when a request last wrote or read it
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make a new lock: the holder of the old one lives in the parent process."""
        self.lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """The number of ids."""
        return len(self.ids)

    def fork(self, tokens: int) -> ChatPrefix:
        """A copy of the first ``tokens`` ids."""
        with self.lock:
            ends = [end for end in self.ends if end <= tokens]
            written = {end: when for end, when in self._written.items() if end <= tokens}
            return ChatPrefix(self.ids[:tokens], ends, written)

    def touch(self, boundary: int) -> None:
        """Record that the provider's cache holds the prefix up to a boundary from now on."""
        with self.lock:
            self._written[boundary] = time.monotonic()

    def warm(self, at: int, seconds: float) -> list[int]:
        """The boundaries up to ``at`` that the cache should still hold, ascending.

        Args:
            at: a boundary.
            seconds: how long an unused prefix is kept.
        """
        oldest = time.monotonic() - seconds
        with self.lock:
            return sorted(end for end, when in self._written.items() if end <= at and when >= oldest)
