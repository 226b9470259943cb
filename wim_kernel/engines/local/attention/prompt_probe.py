"""What the attention of a branch's prompt falls on: the mass that its scored tokens put on spans of text, by head.

A few heads of a language model look up what a question asks for (retrieval heads, arXiv 2404.15574; query-focused
heads, arXiv 2506.09944). Their attention is computed anyway; a probe computes it once more for those heads and those
few queries alone, with the probabilities written out, and adds them up over each span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wim_kernel.engines.base import AttentionProbe
from wim_kernel.engines.local.attention.parts import Terms, in_window


@dataclass(frozen=True)
class ProbedRow:
    """A row of a prompt batch whose attention is wanted.

    Attributes:
        row: its number in the pass.
        at: how many tokens of the prefix it sees.
        pad: padding slots before its own tokens.
        queries: slots of the tokens whose attention counts.
        probe: the heads and the spans.
    """

    row: int
    at: int
    pad: int
    queries: range
    probe: AttentionProbe


class PromptProbe:
    """Watches one pass over prompts, layer by layer.

    Args:
        rows: the rows whose attention is wanted.
    """

    def __init__(self, rows: Sequence[ProbedRow]) -> None:
        self.rows = rows
        self._mass: dict[tuple[int, int, int], Tensor] = {}

    def observe(self, layer: int, query: Tensor, key: Tensor, prefix: Tensor | None, terms: Terms) -> None:
        """Take the attention of one layer in.

        Args:
            layer: the layer's index.
            query: (rows, heads, M, D), of the pass.
            key: (rows, key heads, M, D), of the pass.
            prefix: the prefix's keys, (key heads, capacity, D); None where nothing was read.
            terms: the layer's scale, window, softcap and sinks.
        """
        for row in self.rows:
            heads = [head for wanted, head in row.probe.heads if wanted == layer]
            if heads:
                mass = _mass(row, heads, query, key, prefix, terms)
                for head, part in zip(heads, mass, strict=True):
                    self._mass[row.row, layer, head] = part

    def mass(self, row: int, device: torch.device) -> Tensor:
        """What a row's scored tokens put on its spans, on average: (heads, spans), in the probe's order of heads."""
        (probed,) = (item for item in self.rows if item.row == row)
        parts = [self._mass[row, layer, head].to(device) for layer, head in probed.probe.heads]
        return torch.stack(parts).float()


def _mass(
    row: ProbedRow, heads: Sequence[int], query: Tensor, key: Tensor, prefix: Tensor | None, terms: Terms
) -> Tensor:
    """The mean attention of a row's queries on each of its spans, (heads, spans), in float64."""
    device, groups = query.device, query.shape[1] // key.shape[1]
    index = torch.tensor(heads, device=device)
    shared = index // groups
    mine = query[row.row, index, row.queries.start : row.queries.stop].float()
    keys = key[row.row, shared, row.pad :].float()
    if row.at:
        assert prefix is not None, "a row behind text has a prefix"
        keys = torch.cat([prefix[shared, : row.at].float(), keys], 1)
    scores = torch.matmul(mine, keys.transpose(1, 2)) * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    positions = torch.arange(row.queries.start, row.queries.stop, device=device) - row.pad + row.at
    seen = in_window(positions[:, None], torch.arange(keys.shape[1], device=device)[None], terms.window)
    scores = scores.masked_fill(~seen, -torch.inf)
    total = torch.logsumexp(scores, -1, keepdim=True)
    if terms.sinks is not None:
        total = torch.logaddexp(total, terms.sinks[index].float()[:, None, None])
    sums = torch.exp(scores - total).mean(1).double().cumsum(-1)
    cuts = torch.tensor(row.probe.cuts, device=device)
    before = torch.where(cuts > 0, sums[:, (cuts - 1).clamp(min=0)], 0.0)
    return before.diff(dim=-1)
