"""The state of a branch in flight, which its requests fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wim_kernel.engines.base import Branch, Decoded, Progress, Scores
from wim_kernel.engines.server.reuse import Cost


@dataclass(eq=False)
class BranchState:
    """The state of a branch in flight.

    Attributes:
        index: index of the branch among those decoded together.
        branch: the branch.
        suffix: ids of its prompt.
        scores: measurements so far.
        cost: cost of its requests so far.
    """

    index: int
    branch: Branch
    suffix: tuple[int, ...]
    scores: Scores = field(default_factory=Scores)
    cost: Cost = field(default_factory=Cost)

    def done(self, text: str = "", token_ids: Sequence[int] = (), *, generated: bool = False) -> Progress:
        """The progress with which the branch ends."""
        return Progress(
            self.index,
            done=Decoded(
                self.scores,
                self.suffix,
                tuple(token_ids),
                text,
                generated=generated,
                prompt_tokens=self.cost.prompt,
                output_tokens=self.cost.output,
                recomputed=self.cost.recomputed,
                prefilled=self.cost.prefilled,
            ),
        )
