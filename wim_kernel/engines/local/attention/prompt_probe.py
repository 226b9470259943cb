"""Measures attention: the mass that the scored tokens of a branch's prompt put on spans of the text, head by head.

A few heads of a language model look up what a question asks for (retrieval heads, arXiv 2404.15574; query-focused
heads, arXiv 2506.09944). Fused attention kernels do not return probabilities, so a probe computes them once more for
those heads and those few queries alone and sums them over each span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from wim_kernel.engines.base import AttentionProbe
from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.model.runner import upload


@dataclass(frozen=True)
class ProbedRow:
    """A row of a prompt batch whose attention is measured.

    Attributes:
        row: index of the row in the forward pass.
        at: number of prefix tokens that the row sees.
        pad: number of padding slots before the row's own tokens.
        queries: slots of the tokens whose attention is averaged.
        probe: the heads and the spans.
    """

    row: int
    at: int
    pad: int
    queries: range
    probe: AttentionProbe

    def moved(self, row: int, slots: int) -> ProbedRow:
        """The row as row ``row`` of another pass, in which its tokens stand ``slots`` slots further on."""
        queries = range(self.queries.start + slots, self.queries.stop + slots)
        return replace(self, row=row, pad=self.pad + slots, queries=queries)


class AttentionObserver(Protocol):
    """Observes the attention of a forward pass, layer by layer."""

    def observe(
        self, layer: int, query: Tensor, key: Tensor, prefix: Tensor | None, params: AttentionParams
    ) -> None:
        """Observe one layer.

        Args:
            layer: index of the layer.
            query: queries of the pass, (rows, heads, M, D).
            key: keys of the pass, (rows, key heads, M, D).
            prefix: keys of the prefix, (key heads, capacity, D); None if the prefix is empty.
            params: the layer's scale, window, softcap and sinks.
        """


class PromptProbe:
    """Measures the attention of one pass over prompts, layer by layer.

    Args:
        rows: the rows whose attention is measured.
    """

    def __init__(self, rows: Sequence[ProbedRow]) -> None:
        self.rows = rows
        self._mass: dict[tuple[int, int, int], Tensor] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are measured, ascending."""
        return tuple(sorted({layer for row in self.rows for layer, _ in row.probe.heads}))

    def observe(
        self, layer: int, query: Tensor, key: Tensor, prefix: Tensor | None, params: AttentionParams
    ) -> None:
        """Measure one layer; see `AttentionObserver.observe`."""
        for row in self.rows:
            heads = [head for wanted, head in row.probe.heads if wanted == layer]
            if heads:
                mass = _mass(row, heads, query, key, prefix, params)
                for head, part in zip(heads, mass, strict=True):
                    self._mass[row.row, layer, head] = part

    def part(self, rows: range, pad: int) -> PromptProbe:
        """A probe for a pass over some of the rows alone, which leaves out their first ``pad`` slots, all padding."""
        return PromptProbe([row.moved(row.row - rows.start, -pad) for row in self.rows if row.row in rows])

    def aligned_left(self) -> PromptProbe:
        """A probe for a pass in which the rows' padding stands behind their tokens."""
        return PromptProbe([row.moved(row.row, -row.pad) for row in self.rows])

    def take(self, part: PromptProbe, first: int) -> None:
        """Take what a `part` has measured, whose first row is row ``first`` here."""
        self._mass |= {(row + first, layer, head): mass for (row, layer, head), mass in part._mass.items()}

    def mass(self, row: int, device: torch.device) -> Tensor:
        """The mean mass that a row's scored tokens put on each span, (heads, spans), in the probe's order of heads."""
        (probed,) = (item for item in self.rows if item.row == row)
        parts = [self._mass[row, layer, head].to(device) for layer, head in probed.probe.heads]
        return torch.stack(parts).float()


def _mass(
    row: ProbedRow,
    heads: Sequence[int],
    query: Tensor,
    key: Tensor,
    prefix: Tensor | None,
    params: AttentionParams,
) -> Tensor:
    """The mean attention mass of a row's queries on each of its spans, (heads, spans), in float64."""
    device, groups = query.device, query.shape[1] // key.shape[1]
    index = upload(heads, torch.int64, device)
    shared = index // groups
    mine = query[row.row, index, row.queries.start : row.queries.stop].float()
    keys = key[row.row, shared, row.pad :].float()
    if row.at:
        assert prefix is not None, "a row that sees prefix tokens has a prefix"
        keys = torch.cat([prefix[shared, : row.at].float(), keys], 1)
    scores = torch.matmul(mine, keys.transpose(1, 2)) * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    positions = torch.arange(row.queries.start, row.queries.stop, device=device) - row.pad + row.at
    visible = params.visible(positions[:, None], torch.arange(keys.shape[1], device=device)[None])
    scores = scores.masked_fill(~visible, -torch.inf)
    total = torch.logsumexp(scores, -1, keepdim=True)
    if params.sinks is not None:
        total = torch.logaddexp(total, params.sinks[index].float()[:, None, None])
    sums = torch.exp(scores - total).mean(1).double().cumsum(-1)
    cuts = upload(row.probe.cuts, torch.int64, device)
    before = torch.where(cuts > 0, sums[:, (cuts - 1).clamp(min=0)], 0.0)
    return before.diff(dim=-1)
