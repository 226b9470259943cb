"""Attention over a prefix that is stored once, in parts that are merged exactly.

Softmax attention over keys that lie in several places can be computed place by place: each part gives its output and
the log-sum-exp of its scores, and parts merge as averages weighted by ``exp(lse)``. So a branch attends to the
reading's keys where they lie and to its own in another buffer, a chunk attends to earlier chunks without a mask, and
nothing is ever copied, repeated or concatenated. (FlashAttention, arXiv 2205.14135; Hydragen, arXiv 2402.05099.)

Shapes: ``A`` batch entries or key heads, ``G`` query heads that share a key head, ``M`` queries, ``N`` keys, ``D``
head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SCORE_BYTES = 128 * 2**20  # most memory that explicit scores take at a time


@dataclass(frozen=True)
class Terms:
    """What a model's layer asks of its attention, beyond queries, keys and values.

    Attributes:
        scale: factor on the scores.
        window: how many positions back a query sees, itself included; None for all.
        softcap: scores are ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: per query head, the logit of a key without a value, shape (heads,) (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class Mask:
    """Which query sees which key; made once for a step and used in every layer.

    Args:
        allowed: True where a query sees a key, broadcastable to (A, 1, M, N).
    """

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed
        self._split: dict[tuple[int, int], Mask] = {}

    def split(self, splits: int, end: int) -> Mask:
        """The mask over the first ``end`` keys, cut into runs: (1, splits, M, end / splits)."""
        if (splits, end) not in self._split:
            runs = self.allowed[:, 0, :, :end].unflatten(-1, (splits, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
            self._split[splits, end] = Mask(runs)
        return self._split[splits, end]

    def tail(self, start: int) -> Mask:
        """The mask over keys ``start`` on."""
        return Mask(self.allowed[..., start:])

    @cached_property
    def blind(self) -> Tensor | None:
        """Queries that see no key at all, (A, 1, M); None if there are none."""
        blind = ~self.allowed.any(-1)
        return blind if bool(blind.any()) else None

    @cached_property
    def bias(self) -> Tensor:
        """The mask as a term of the scores, in float32: 0 or minus infinity."""
        return torch.zeros(self.allowed.shape, device=self.allowed.device).masked_fill_(
            ~self.allowed, -torch.inf
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor]:
    """One part of attention: the output over these keys alone, and the log-sum-exp of its scores.

    Args:
        query: (A, G, M, D).
        key: (A, 1, N, D): one key head for its G query heads.
        value: (A, 1, N, Dv).
        terms: scale and softcap; the window is the caller's to turn into a mask.
        causal: query m sees keys 0..m; needs M == N.
        mask: which query sees which key. A query that sees none gets a log-sum-exp of minus infinity.

    Returns:
        The output (A, G, M, Dv), and the log-sum-exp (A, G, M) in float32.
    """
    if not _has_flash(query, value, mask, terms):
        if causal:
            size = query.shape[2]
            mask = Mask(torch.ones(1, 1, size, size, dtype=torch.bool, device=query.device).tril())
        return _explicit(query, key, value, terms, mask)
    entries, groups, queries, size = query.shape
    if causal or (mask is not None and groups > 1):
        return _flash(query, key, value, terms.scale, causal, mask)
    # without a mask, grouped heads are just more queries of the same key head
    folded = query.reshape(entries, 1, groups * queries, size)
    out, lse = _flash_split(folded, key, value, terms.scale, mask, _splits(folded, key))
    return out.reshape(entries, groups, queries, -1), lse.reshape(entries, groups, queries)


def _has_flash(query: Tensor, value: Tensor, mask: Mask | None, terms: Terms) -> bool:
    if terms.softcap is not None or query.shape[-1] != value.shape[-1]:
        return False
    if query.device.type == "cpu":
        return query.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if query.device.type == "cuda":
        return mask is None and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256
    return False


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Mask | None = None
) -> tuple[Tensor, Tensor]:
    """Torch's flash kernels, called where they also return the log-sum-exp."""
    key, value = (item.expand(-1, query.shape[1], -1, -1) for item in (key, value))
    if query.device.type != "cpu":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return out, lse
    bias = None if mask is None else mask.bias.to(query.dtype)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    if mask is not None and mask.blind is not None:  # the kernel gives those zeros and a wrong log-sum-exp
        out, lse = out.masked_fill(mask.blind[..., None], 0.0), lse.masked_fill(mask.blind, -torch.inf)
    return out, lse


def _splits(query: Tensor, key: Tensor) -> int:
    """Into how many runs to cut the keys of few queries, so that a CPU's threads have equal shares of the heads."""
    entries, _, queries, _ = query.shape
    if query.device.type != "cpu" or queries > 64 or key.shape[2] < 1024:
        return 1
    threads = torch.get_num_threads()
    return threads // math.gcd(entries, threads)


def _flash_split(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Mask | None, splits: int
) -> tuple[Tensor, Tensor]:
    """Attention of (A, 1, M, D) over all keys, cut into ``splits`` runs that are computed side by side and merged."""
    if splits == 1:
        return _flash(query, key, value, scale, mask=mask)
    even = key.shape[2] // splits * splits
    keys, values = (
        item[:, 0, :even].unflatten(1, (splits, -1))  # type: ignore[no-untyped-call]
        for item in (key, value)
    )
    cut = None if mask is None else mask.split(splits, even)
    outs, lses = _flash(query.expand(-1, splits, -1, -1), keys, values, scale, mask=cut)
    weights = torch.softmax(lses, 1).nan_to_num_(0.0)  # what sees nothing in any run weighs none of them
    lse = functools.reduce(torch.logaddexp, lses[:, :, None].unbind(1))  # fewer operations than logsumexp
    merge = Merge((outs * weights[..., None]).sum(1, keepdim=True), lse)
    if even < key.shape[2]:
        tail = None if mask is None else mask.tail(even)
        merge.add(*_flash(query, key[:, :, even:], value[:, :, even:], scale, mask=tail))
    return merge.out.to(query.dtype), merge.lse


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, terms: Terms, mask: Mask | None
) -> tuple[Tensor, Tensor]:
    """Attention written out, in float32, for what no kernel takes; a block of queries at a time."""
    entries, groups, queries, _ = query.shape
    key, value = key.float().transpose(-1, -2), value.float()
    block = max(1, SCORE_BYTES // max(1, 4 * entries * groups * key.shape[-1]))
    outs, lses = [], []
    for start in range(0, queries, block):
        scores = torch.matmul(query[:, :, start : start + block].float(), key) * terms.scale
        if terms.softcap is not None:
            scores = terms.softcap * torch.tanh(scores / terms.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask.allowed[..., start : start + block, :], -torch.inf)
        lse = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
        outs.append(torch.matmul(weights, value).to(query.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


class Merge:
    """The running exact merge of parts, in float32; a part may cover only some entries of the first axis.

    Holds ``out`` (..., M, Dv) and ``lse`` (..., M). Starts from a part that covers everything; it is written to.
    """

    def __init__(self, out: Tensor, lse: Tensor) -> None:
        self.out = out.float()
        self.lse = lse

    def add(self, out: Tensor, lse: Tensor, rows: slice = slice(None)) -> None:
        """Merge a part into ``rows`` of the first axis."""
        mine, both = self.lse[rows], torch.logaddexp(self.lse[rows], lse)
        base = both.clamp(min=torch.finfo(both.dtype).min)  # finite also where a query has seen nothing yet
        self.out[rows] *= torch.exp(mine - base)[..., None]
        self.out[rows] += out * torch.exp(lse - base)[..., None]
        self.lse[rows] = both

    def sink(self, sinks: Tensor) -> None:
        """Merge a key without a value: ``sinks`` broadcastable to ``lse``."""
        self.out = self.out * torch.sigmoid(self.lse - sinks.float())[..., None]


def extend_attention(query: Tensor, keys: Tensor, values: Tensor, start: int, terms: Terms) -> Tensor:
    """Attention of a chunk's tokens, positions ``start`` on, over everything up to themselves.

    Args:
        query: (1, heads, M, D).
        keys: (key heads, start + M, D), the chunk's own at the end.
        values: (key heads, start + M, Dv).
        start: position of the first query.
        terms: see `Terms`.

    Returns:
        (1, M, heads, Dv), as the attention interface of transformers wants it.
    """
    _, heads, count, size = query.shape
    key_heads, end, _ = keys.shape
    query = query.view(key_heads, heads // key_heads, count, size)
    keys, values = keys[:, None], values[:, None]
    if terms.window is None or terms.window >= end:
        merge = Merge(*attend(query, keys[:, :, start:], values[:, :, start:], terms, causal=True))
        if start:
            merge.add(*attend(query, keys[:, :, :start], values[:, :, :start], terms))
    else:
        low = max(0, start - terms.window + 1)
        positions = torch.arange(low, end, device=query.device)
        mask = in_window(positions[start - low :, None], positions[None], terms.window)
        merge = Merge(
            *attend(query, keys[:, :, low:], values[:, :, low:], terms, mask=Mask(mask[None, None]))
        )
    if terms.sinks is not None:
        merge.sink(terms.sinks.view(key_heads, -1, 1))
    return merge.out.to(query.dtype).reshape(1, heads, count, -1).transpose(1, 2)


def in_window(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """True where a key is at or before a query and, with a window, fewer than ``window`` positions back."""
    distance = query_positions - key_positions
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


@dataclass(frozen=True)
class Part:
    """A run of the prefix that the leading ``rows`` branches see whole, ``start`` to ``end``."""

    start: int
    end: int
    rows: int


PART_PAIRS = 2**16  # query-key pairs that a CPU gets through in the time that one more part takes to set up


def nested_parts(lengths: Sequence[int]) -> list[Part]:
    """Cut a prefix where visible lengths end: branches sorted by falling length see each part whole or not at all.

    Every part is read once for all the branches that see it, without a mask.
    """
    if list(lengths) != sorted(lengths, reverse=True):
        raise ValueError("Branches must be sorted by falling prefix length.")
    parts, start = [], 0
    for rows in range(len(lengths), 0, -1):
        end = lengths[rows - 1]
        if end > start:
            parts.append(Part(start, end, rows))
            start = end
    return parts
