"""What servers say of their prefix caches: counted, and a warning where they find far too little again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from wim_kernel.engines.server.deltas import Said

ENOUGH_TO_JUDGE = 4096
"""Shared tokens after which too little reuse is worth a warning."""


@dataclass(frozen=True)
class Cost:
    """What requests cost.

    Attributes:
        prompt: tokens of their prompts behind the prefix.
        output: tokens generated.
        recomputed: tokens of the prefix that were run again, as far as the server told.
    """

    prompt: int = 0
    output: int = 0
    recomputed: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt + other.prompt, self.output + other.output, self.recomputed + other.recomputed
        )


class Reuse:
    """Takes in what servers say.

    Args:
        advice: what to change where prefixes are not found again.
        exact: whether the server counts the tokens that are counted here.

    Attributes:
        said: whether it is known how many of the tokens counted here were found; None before anything was asked.
    """

    def __init__(self, advice: str, exact: bool) -> None:
        self.advice = advice
        self.exact = exact
        self.said: bool | None = None
        self._tell: set[str] = set()  # servers that have said a count; from them none means 0
        self._shared, self._found, self._warned = 0, 0, False

    def heard(self, said: Said | None, shared: int) -> int | None:
        """Take in what was said of one request.

        Args:
            said: what.
            shared: how many tokens of its prompt the server had read before, as the server counts.

        Returns:
            How many tokens of the prompt it found in its cache; None if that is not known, or is not counted as here.
        """
        found = said.cached if said is not None else None
        if said is not None and found is not None:
            self._tell.add(said.by)
        if found is None and said is not None and said.by in self._tell:
            found = 0  # some leave a count of 0 out
        self.said = bool(self.said) or (found is not None and self.exact)
        if found is None:
            return None
        self._shared += shared
        self._found += min(found, shared)
        if not self._warned and self._shared > ENOUGH_TO_JUDGE and self._found < self._shared // 2:
            self._warned = True
            warnings.warn(
                f"The server found only {self._found} of {self._shared} shared tokens in its prefix cache, so "
                f"documents are read again and again: {self.advice}.",
                stacklevel=2,
            )
        return found if self.exact else None
