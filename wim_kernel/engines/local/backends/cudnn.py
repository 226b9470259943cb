"""Long runs of a chunk's attention by cuDNN, where it is quicker than the Triton kernels: known by measuring."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.attention.triton_launch import (
    Elsewhere,
    branch_attention,
    on_device,
    pack_state,
    prefix_splits,
    table_row,
)
from wim_kernel.engines.local.model.runner import upload

logger = logging.getLogger(__name__)

TILE = 4096  # keys of a tile: few shapes, since cuDNN makes a plan for each, which takes some 45 ms
FEW_QUERIES = 1024  # queries are padded to a multiple of this, for the same reason


@dataclass(frozen=True)
class ByLibrary:
    """What of a chunk's attention is left to a library.

    Attributes:
        tiles: its attention to whole tiles of the prefix.
        itself: its attention to itself.
    """

    tiles: bool
    itself: bool


class CuDNN:
    """Decides what of a chunk's attention cuDNN computes, and computes that.

    Args:
        use: ``"always"`` where cuDNN takes the shape, ``"never"``, or ``"measured"``: where it is quicker.
    """

    def __init__(self, use: Literal["always", "never", "measured"]) -> None:
        self.use = use
        self._by_library: dict[tuple[int, ...], ByLibrary] = {}

    def partials(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix: tuple[Tensor, Tensor],
        start: int,
        terms: Terms,
    ) -> tuple[int, Elsewhere]:
        """What of a chunk's attention a library computes sooner: over whole tiles before it, and over itself.

        Args:
            query: (1, H, M, D).
            key: (1, K, M, D), the chunk's own.
            value: (1, K, M, Dv).
            prefix: keys (K, capacity, D) and values (K, capacity, Dv), token by token in memory.
            start: how many tokens stand before the chunk.
            terms: with a cap, or a window that ends before the document, all is left to the kernels.

        Returns:
            How many tokens of the prefix were attended to, and what it came to.
        """
        plain = terms.softcap is None and (terms.window is None or terms.window >= start + query.shape[2])
        by_library = self._left_to_library(query, key, value, terms) if plain else ByLibrary(False, False)
        found = _itself(query, key, value, terms.scale) if by_library.itself else Elsewhere()
        tokens = start // TILE * TILE if by_library.tiles else 0
        if tokens:
            keys, values = (item[None, :, :tokens] for item in prefix)
            found = replace(found, outer=_cudnn(query, keys, values, terms.scale))
        return tokens, found

    def _left_to_library(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> ByLibrary:
        if self.use == "never" or not _cudnn_fits(query, value):
            return ByLibrary(False, False)
        if self.use == "always":
            return ByLibrary(True, True)
        if query.shape[2] < TILE // 2:
            return ByLibrary(False, False)
        shape = (query.shape[1], key.shape[1], query.shape[3])
        if shape not in self._by_library:
            self._by_library[shape] = _measured(query, key, value, terms)
        return self._by_library[shape]


def _cudnn_fits(query: Tensor, value: Tensor) -> bool:
    size = query.shape[-1]
    halves = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and halves and size == value.shape[-1] and size % 8 == 0 and size <= 128


def _itself(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Elsewhere:
    """A chunk's attention to itself by cuDNN, but for a short rest, which is not worth the padding."""
    count = query.shape[2]
    size = (count + FEW_QUERIES // 2) // FEW_QUERIES * FEW_QUERIES
    if size == 0:
        return Elsewhere()
    queries, keys, values = (
        _padded(item, size) if size > count else item[:, :, :size] for item in (query, key, value)
    )
    return Elsewhere(inner=_cudnn(queries, keys, values, scale, causal=True), done=min(size, count))


def _padded(tensor: Tensor, size: int) -> Tensor:
    """(1, heads, M, D) with zeros behind it up to M = ``size``, token by token in memory."""
    whole = tensor.new_zeros(1, size, tensor.shape[1], tensor.shape[3])
    whole[:, : tensor.shape[2]] = tensor.transpose(1, 2)
    return whole.transpose(1, 2)


def _cudnn(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention by cuDNN: output (1, H, M or more, D), token by token, and log-sum-exp (1, H, M or more).

    Queries are padded and strides are those of a tile, so that few plans are made.

    Args:
        query: (1, H, M, D).
        keys: (1, K, N, D).
        values: (1, K, N, D).
        scale: of the scores.
        causal: query i sees keys 0 to i; all of them otherwise.
    """
    _, heads, count, size = query.shape
    padded = -(-count // FEW_QUERIES) * FEW_QUERIES
    if padded > count:
        query = _padded(query, padded)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, keys, values, None, True, 0.0, causal, False, scale=scale
    )
    if out.stride()[1:] != (size, heads * size, 1):
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out, lse.reshape(1, heads, padded)


def _measured(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> ByLibrary:
    """What cuDNN does sooner for a chunk like this one, which also stands in for a tile of the prefix."""
    size, device = query.shape[2] // FEW_QUERIES * FEW_QUERIES, query.device
    query, key, value = (item[:, :, :size] for item in (query, key, value))
    keys, values = (item[0].transpose(0, 1).contiguous() for item in (key, value))
    table = upload(table_row(keys, values, [keys], [values]), torch.int64, device)
    states = {
        (base, start): upload(pack_state(base, [start], [0], [0]), torch.int32, device)
        for base, start in ((0, 0), (0, size), (size, size))
    }

    def attend(base: int, start: int, elsewhere: Elsewhere | None = None) -> Tensor:
        splits = prefix_splits(query, key, start - base)
        state = states[base, start]
        return branch_attention(
            query, key, value, terms, table, state, splits, past=False, elsewhere=elsewhere
        )

    def over_tile() -> Elsewhere:
        tile_keys, tile_values = (item.transpose(0, 1)[None] for item in (keys, values))
        return Elsewhere(outer=_cudnn(query, tile_keys, tile_values, terms.scale))

    try:
        with on_device(device):
            tiles = _is_quicker(
                "a tile and a chunk", lambda: attend(size, size, over_tile()), lambda: attend(0, size)
            )
            itself = _is_quicker(
                "a chunk", lambda: attend(0, 0, _itself(query, key, value, terms.scale)), lambda: attend(0, 0)
            )
    except RuntimeError as error:  # no plan for this shape: the kernels take any
        logger.debug("cuDNN's attention does not take this shape: %s", error)
        return ByLibrary(False, False)
    return ByLibrary(tiles, itself)


def _is_quicker(what: str, with_library: Callable[[], Tensor], alone: Callable[[], Tensor]) -> bool:
    """Whether it is done sooner with cuDNN's help, and is the same."""
    (theirs, by_library), (ours, by_kernels) = _timed(with_library), _timed(alone)
    apart = float((ours.float() - theirs.float()).norm() / ours.float().norm())
    logger.debug("%s: %.3f ms alone, %.3f with cuDNN; apart by %.1e", what, by_kernels, by_library, apart)
    return by_library < by_kernels and apart < 2e-2


def _timed(work: Callable[[], Tensor], repeats: int = 5) -> tuple[Tensor, float]:
    """A result, and its milliseconds on the device: the best of three runs of so many, launched without a pause."""
    result, best = work(), float("inf")
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeats):
            result = work()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / repeats)
    return result, best
