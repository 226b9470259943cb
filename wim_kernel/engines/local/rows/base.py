"""The protocol of branches as rows of a batch, which every backend implements for the decoder."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.prompt_probe import PromptProbe


class StepOutput(NamedTuple):
    """The logits of one decode step.

    Attributes:
        logits: logits of the next token, (rows, vocabulary).
        argmax: for each row, the token id with the highest logit.
    """

    logits: Tensor
    argmax: list[int]

    @classmethod
    def of(cls, logits: Tensor) -> StepOutput:
        """The output with the argmax computed here."""
        return cls(logits, logits.argmax(-1).tolist())


class BranchRows(Protocol):
    """Branches that run together: in PyTorch, by the Triton kernels, or on copies of the model's own cache."""

    def prompt(
        self,
        ids: Sequence[Sequence[int]],
        width: int,
        keep: Tensor,
        start: int = 0,
        probe: PromptProbe | None = None,
    ) -> Tensor:
        """Run the prompts of some rows.

        Args:
            ids: token ids of the prompts of consecutive rows.
            width: number of slots to which each prompt is padded on the left.
            keep: slots whose logits are returned.
            start: first of the rows.
            probe: measures attention of this pass, if given.

        Returns:
            Logits (rows, keep, vocabulary).
        """

    sees_attention: bool
    """Whether `prompt` can show attention to a probe."""

    def step(self, tokens: list[int], *, ahead: bool = False) -> StepOutput:
        """Append one token to every row.

        Args:
            tokens: one token id for each row.
            ahead: whether the argmax tokens of this step will almost certainly be appended next, so that the step after
                this one may be launched before the host has looked at the result.
        """

    @property
    def batch_key(self) -> Hashable:
        """Batches with equal keys can run their steps in one pass; None for a batch that always runs alone."""

    def step_together(
        self, steps: Sequence[tuple[Any, list[int]]], *, ahead: bool = False
    ) -> list[StepOutput]:
        """Run a step of several batches, this one among them, in one pass; each batch then has to `advance`.

        Args:
            steps: batches with equal `batch_key`, each with a token for each of its rows.
            ahead: as of `step`, for all of them.
        """

    def advance(self) -> None:
        """Count the step that `step_together` ran for this batch: its tokens are now part of the rows."""

    def select(self, rows: list[int]) -> None:
        """Keep only ``rows``, ascending."""


def left_padded(ids: Sequence[Sequence[int]], width: int) -> tuple[list[int], Tensor]:
    """Prompts padded on the left to ``width``: the padding of each row, and token ids (rows, width)."""
    pads = [width - len(row) for row in ids]
    return pads, torch.tensor([[0] * pad + list(row) for pad, row in zip(pads, ids, strict=True)])
