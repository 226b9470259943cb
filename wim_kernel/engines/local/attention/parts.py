"""Attention over a prefix that is stored once, in parts that are merged exactly.

Softmax attention over keys in several buffers can be computed buffer by buffer: each part gives its output and the
log-sum-exp of its scores, and parts merge as averages weighted by ``exp(lse)``. So a branch attends to the prefix's
keys in the shared buffer and to its own keys in another, a chunk attends to earlier chunks without a mask, and nothing
is ever copied, repeated or concatenated. (FlashAttention, arXiv 2205.14135; Hydragen, arXiv 2402.05099.)

Shapes: ``A`` batch entries or key heads, ``G`` query heads that share a key head, ``M`` queries, ``N`` keys, ``D``
head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SCORE_BYTES = 128 * 2**20
"""Most memory for the score matrix where attention is written out."""


@dataclass(frozen=True)
class AttentionParams:
    """The arguments of a layer's attention besides queries, keys and values.

    `visible` is the one definition of which query sees which key. A query sees a run of consecutive keys that ends at
    its own position, from `first_visible` on; everything else here says the same in a form that saves work. Another
    kind of attention is a subclass with these methods of its own; a backend that computes the mask in its own way says
    in ``supports`` that it does not know it.

    Attributes:
        scale: factor on the scores.
        window: number of positions that a query sees, its own included; None for all up to its own.
        softcap: bound of the scores, which become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: for each query head, the logit of a key without a value, shape (heads,) (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """True where a key is at or before the query and, with a window, fewer than ``window`` positions back.

        Args:
            query_positions: positions in the text, broadcastable against the keys'.
            key_positions: positions in the text.
        """
        distance = query_positions - key_positions
        return distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)

    def first_visible(self, position: int) -> int:
        """The first key position that the query at ``position`` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def is_plain(self, end: int) -> bool:
        """Whether queries at positions before ``end`` see every key up to themselves: causal attention alone."""
        return self.window is None or self.window >= end

    @property
    def mask_key(self) -> Hashable:
        """A key for masks: layers with equal keys have equal masks."""
        return self.window


class Mask:
    """The visibility of keys for queries; made once for a forward pass and used in every layer.

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
        """The mask over the keys from ``start`` on."""
        return Mask(self.allowed[..., start:])

    @cached_property
    def blind(self) -> Tensor | None:
        """True for queries that see no key at all, (A, 1, M); None if there are none."""
        blind = ~self.allowed.any(-1)
        return blind if bool(blind.any()) else None

    @cached_property
    def bias(self) -> Tensor:
        """The mask as a bias on the scores, in float32: 0 or minus infinity."""
        return torch.zeros(self.allowed.shape, device=self.allowed.device).masked_fill_(
            ~self.allowed, -torch.inf
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> tuple[Tensor, Tensor]:
    """One part of attention: the output over these keys alone, and the log-sum-exp of its scores.

    Args:
        query: (A, G, M, D).
        key: (A, 1, N, D): one key head for its G query heads.
        value: (A, 1, N, Dv).
        params: scale and softcap. The caller turns a window into ``mask``.
        causal: whether query m sees keys 0 to m only; needs M == N.
        mask: visibility of keys; None if every query sees every key. A query that sees none gets a log-sum-exp of
            minus infinity.

    Returns:
        The output (A, G, M, Dv), and the log-sum-exp (A, G, M) in float32.
    """
    if not _has_flash(query, value, mask, params):
        if causal:
            size = query.shape[2]
            mask = Mask(torch.ones(1, 1, size, size, dtype=torch.bool, device=query.device).tril())
        return _explicit(query, key, value, params, mask)
    entries, groups, queries, size = query.shape
    if causal or (mask is not None and groups > 1):
        return _flash(query, key, value, params.scale, causal, mask)
    # without a mask, the query heads of a group are just more queries of the same key head
    folded = query.reshape(entries, 1, groups * queries, size)
    out, lse = _flash_split(folded, key, value, params.scale, mask, _splits(folded, key))
    return out.reshape(entries, groups, queries, -1), lse.reshape(entries, groups, queries)


def _has_flash(query: Tensor, value: Tensor, mask: Mask | None, params: AttentionParams) -> bool:
    if params.softcap is not None or query.shape[-1] != value.shape[-1]:
        return False
    if query.device.type == "cpu":
        return query.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if query.device.type == "cuda":
        return mask is None and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256
    return False


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Mask | None = None
) -> tuple[Tensor, Tensor]:
    """Torch's flash kernels, through the operators that also return the log-sum-exp."""
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
    if mask is not None and mask.blind is not None:  # the kernel gives them zeros and a wrong log-sum-exp
        out, lse = out.masked_fill(mask.blind[..., None], 0.0), lse.masked_fill(mask.blind, -torch.inf)
    return out, lse


def _splits(query: Tensor, key: Tensor) -> int:
    """Number of runs to cut the keys into, so that few queries still give each CPU thread an equal number of heads."""
    entries, _, queries, _ = query.shape
    if query.device.type != "cpu" or queries > 64 or key.shape[2] < 1024:
        return 1
    threads = torch.get_num_threads()
    return threads // math.gcd(entries, threads)


def _flash_split(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Mask | None, splits: int
) -> tuple[Tensor, Tensor]:
    """Attention of queries (A, 1, M, D) over keys cut into ``splits`` runs, computed in parallel and merged."""
    if splits == 1:
        return _flash(query, key, value, scale, mask=mask)
    even = key.shape[2] // splits * splits
    keys, values = (
        item[:, 0, :even].unflatten(1, (splits, -1))  # type: ignore[no-untyped-call]
        for item in (key, value)
    )
    cut = None if mask is None else mask.split(splits, even)
    outs, lses = _flash(query.expand(-1, splits, -1, -1), keys, values, scale, mask=cut)
    weights = torch.softmax(lses, 1).nan_to_num_(0.0)  # a query that sees no key has weight 0 everywhere
    lse = functools.reduce(torch.logaddexp, lses[:, :, None].unbind(1))  # fewer operations than logsumexp
    merge = Merge((outs * weights[..., None]).sum(1, keepdim=True), lse)
    if even < key.shape[2]:
        tail = None if mask is None else mask.tail(even)
        merge.add(*_flash(query, key[:, :, even:], value[:, :, even:], scale, mask=tail))
    return merge.out.to(query.dtype), merge.lse


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, params: AttentionParams, mask: Mask | None
) -> tuple[Tensor, Tensor]:
    """Attention written out in float32, a block of queries at a time, for arguments that no kernel takes."""
    entries, groups, queries, _ = query.shape
    key, value = key.float().transpose(-1, -2), value.float()
    block = max(1, SCORE_BYTES // max(1, 4 * entries * groups * key.shape[-1]))
    outs, lses = [], []
    for start in range(0, queries, block):
        scores = torch.matmul(query[:, :, start : start + block].float(), key) * params.scale
        if params.softcap is not None:
            scores = params.softcap * torch.tanh(scores / params.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask.allowed[..., start : start + block, :], -torch.inf)
        lse = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
        outs.append(torch.matmul(weights, value).to(query.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


class Merge:
    """The running exact merge of parts, in float32; a part may cover only some entries of the first axis.

    Args:
        out: output of the first part, (..., M, Dv), which covers all entries. It is overwritten.
        lse: log-sum-exp of the first part, (..., M). It is overwritten.
    """

    def __init__(self, out: Tensor, lse: Tensor) -> None:
        self.out = out.float()
        self.lse = lse

    def add(self, out: Tensor, lse: Tensor, rows: slice = slice(None)) -> None:
        """Merge a part into ``rows`` of the first axis."""
        mine, both = self.lse[rows], torch.logaddexp(self.lse[rows], lse)
        base = both.clamp(min=torch.finfo(both.dtype).min)  # finite even for a query that has seen no key yet
        self.out[rows] *= torch.exp(mine - base)[..., None]
        self.out[rows] += out * torch.exp(lse - base)[..., None]
        self.lse[rows] = both

    def sink(self, sinks: Tensor) -> None:
        """Merge in a key without a value, whose logits are ``sinks``, broadcastable to ``lse``."""
        self.out = self.out * torch.sigmoid(self.lse - sinks.float())[..., None]


def extend_attention(
    query: Tensor, keys: Tensor, values: Tensor, start: int, params: AttentionParams
) -> Tensor:
    """Attention of new tokens, at positions from ``start`` on, over the prefix and themselves.

    Args:
        query: (1, heads, M, D).
        keys: (key heads, start + M, D), those of the new tokens last.
        values: (key heads, start + M, Dv).
        start: position of the first query.
        params: scale, window, softcap and sinks.

    Returns:
        (1, M, heads, Dv), the layout of transformers' attention interface.
    """
    _, heads, count, size = query.shape
    key_heads, end, _ = keys.shape
    query = query.view(key_heads, heads // key_heads, count, size)
    keys, values = keys[:, None], values[:, None]
    if params.is_plain(end):
        merge = Merge(*attend(query, keys[:, :, start:], values[:, :, start:], params, causal=True))
        if start:
            merge.add(*attend(query, keys[:, :, :start], values[:, :, :start], params))
    else:
        low = params.first_visible(start)
        positions = torch.arange(low, end, device=query.device)
        mask = params.visible(positions[start - low :, None], positions[None])
        merge = Merge(
            *attend(query, keys[:, :, low:], values[:, :, low:], params, mask=Mask(mask[None, None]))
        )
    if params.sinks is not None:
        merge.sink(params.sinks.view(key_heads, -1, 1))
    return merge.out.to(query.dtype).reshape(1, heads, count, -1).transpose(1, 2)


@dataclass(frozen=True)
class Part:
    """Positions ``start`` to ``end`` of the prefix, which the first ``rows`` rows see in full and later rows not."""

    start: int
    end: int
    rows: int


PART_PAIRS = 2**16
"""Query-key pairs that a CPU computes in the time that one more part takes to set up."""


def nested_parts(lengths: Sequence[int]) -> list[Part]:
    """Cut a prefix at the rows' visible lengths, so that each row sees each part in full or not at all.

    Every part is then read once for all rows that see it, without a mask.

    Args:
        lengths: number of prefix tokens that each row sees, in descending order.

    Raises:
        ValueError: if the lengths are in another order.
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
