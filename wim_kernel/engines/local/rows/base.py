"""What the decoder needs of a batch of branches, whichever backend runs them as rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from wim_kernel.engines.local.attention.prompt_probe import PromptProbe


class Next(NamedTuple):
    """What may come next in each row of a batch.

    Attributes:
        logits: (rows, vocabulary).
        likeliest: the token with the highest of each row.
    """

    logits: Tensor
    likeliest: list[int]

    @classmethod
    def of(cls, logits: Tensor) -> Next:
        """From the logits alone."""
        return cls(logits, logits.argmax(-1).tolist())


class Batch(Protocol):
    """Rows that run together: in PyTorch, by the Triton kernels, or over snapshots."""

    def prompt(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int = 0,
        probe: PromptProbe | None = None,
    ) -> Tensor:
        """Run left-padded prompts of rows ``start`` on, watched by ``probe``; logits (rows, keep, vocabulary)."""

    sees_attention: bool
    """Whether a probe of `prompt` is shown the attention."""

    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append a token to every row; with ``ahead``, the likeliest tokens are surely wanted after it."""

    @property
    def batch_key(self) -> Hashable:
        """Batches with equal companies can make a step together; None for one that steps alone."""

    def step_together(self, steps: Sequence[tuple[Any, list[int]]]) -> list[Next]:
        """A step of each of several batches, of which this is one, in one pass. It counts once they `advance`."""

    def advance(self) -> None:
        """A step together with others is over, and this batch has its part of it."""

    def select(self, rows: list[int]) -> None:
        """Let all but ``rows`` leave."""
