"""Counts what the provider's cache gave, and warns if it is far less than sharing a prefix should give."""

from __future__ import annotations

import threading
import warnings

from wim_kernel.common import forks
from wim_kernel.engines.chat.backend import Billed

READS_DUE_BEFORE_WARNING = 8192
"""Tokens that the cache should have had, after which too few reads are worth a warning."""


class CacheReads:
    """Counts cache reads, and how many tokens the provider counts for one of our estimated tokens.

    Args:
        model: the model's name, for the warning.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._expected, self._read, self._warned = 0.0, 0, False
        self._estimated, self._counted = 0, 0
        self.renew_after_fork()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """Make a new lock."""
        self._lock = threading.Lock()

    @property
    def scale(self) -> float:
        """The provider's tokens for each of ours, over all requests so far; 1 before the first."""
        return self._counted / self._estimated if self._estimated else 1.0

    def record(self, billed: Billed, estimated: int, expected: int) -> None:
        """Count one request.

        Args:
            billed: the provider's report.
            estimated: our estimate of its prompt, in tokens.
            expected: our estimate of the tokens that the cache should have had.
        """
        with self._lock:
            self._estimated += estimated
            self._counted += billed.input_tokens
            if billed.cache_read is None:
                return
            self._expected += expected * self.scale
            self._read += billed.cache_read
            if self._warned or self._expected < READS_DUE_BEFORE_WARNING or self._read >= self._expected / 2:
                return
            self._warned = True
        warnings.warn(
            f"{self.model} read {self._read:,} tokens from its cache, of {self._expected:,.0f} that requests before "
            "had sent: the document is paid for again and again. See that nothing in front of it changes (a schema by "
            "structured=True does), that chunks are longer than the provider's shortest cached prefix, and that "
            "provider= names the right row.",
            stacklevel=2,
        )
