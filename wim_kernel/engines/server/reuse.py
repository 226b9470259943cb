"""Counts the prefix cache hits that servers report, and warns if they are far too few."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from wim_kernel.engines.server.deltas import UsageReport

HITS_DUE_BEFORE_WARNING = 4096
"""Tokens that the cache should have had, after which too few hits are worth a warning."""


@dataclass(frozen=True)
class Cost:
    """The tokens of a branch's requests.

    Attributes:
        prompt: number of prompt tokens after the prefix.
        output: number of generated tokens.
        recomputed: number of prefix tokens that were prefilled again, as far as the server reports it.
        prefilled: number of prefix tokens that these requests were the first to need; see `Claim.charged`.
    """

    prompt: int = 0
    output: int = 0
    recomputed: int = 0
    prefilled: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt + other.prompt,
            self.output + other.output,
            self.recomputed + other.recomputed,
            self.prefilled + other.prefilled,
        )


class CacheHits:
    """Counts cache hits.

    Args:
        advice: what to change if the prefix cache misses, for the warning.
        exact: whether servers count in our token units.

    Attributes:
        reported: whether servers report cache hits in our token units; None before the first request.
    """

    def __init__(self, advice: str, exact: bool) -> None:
        self.advice = advice
        self.exact = exact
        self.reported: bool | None = None
        # servers that have reported a count: from them, a missing count means 0
        self._reporting: set[str] = set()
        self._expected, self._cached, self._warned = 0, 0, False

    def record(self, usage: UsageReport | None, expected: int) -> int | None:
        """Count the cache hits of one request.

        Args:
            usage: the server's report; None if there is none.
            expected: number of prompt tokens that the cache should have, in the server's units.

        Returns:
            The number of prompt tokens found in the cache; None if it is unknown, or not in our token units.
        """
        found = usage.cached_tokens if usage is not None else None
        if usage is not None and found is not None:
            self._reporting.add(usage.server)
        if found is None and usage is not None and usage.server in self._reporting:
            found = 0  # some servers leave out a count of 0
        self.reported = bool(self.reported) or (found is not None and self.exact)
        if found is None:
            return None
        self._expected += expected
        self._cached += min(max(0, found), expected)
        if (
            not self._warned
            and self._expected > HITS_DUE_BEFORE_WARNING
            and self._cached < self._expected // 2
        ):
            self._warned = True
            warnings.warn(
                f"The server found only {self._cached} of {self._expected} shared tokens in its prefix cache, so "
                f"documents are read again and again: {self.advice}.",
                stacklevel=2,
            )
        return found if self.exact else None
