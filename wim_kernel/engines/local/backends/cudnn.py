"""Leaves parts of a chunk's attention to cuDNN, where a measurement finds it faster than the Triton kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.attention.triton_launch import (
    CudnnPartials,
    branch_attention,
    on_device,
    pack_state,
    prefix_splits,
    table_row,
)
from wim_kernel.engines.local.model.runner import upload

logger = logging.getLogger(__name__)

TILE = 4096
"""Prefix tokens that cuDNN takes at a time: few shapes, since it needs some 45 ms to plan each."""
FEW_QUERIES = 1024
"""Queries are padded to a multiple of this, for the same reason."""


@dataclass(frozen=True)
class LeftToCudnn:
    """The parts of a chunk's attention that cuDNN computes.

    Attributes:
        prefix: whether it computes attention to whole tiles of the prefix.
        causal: whether it computes the chunk's attention to itself.
    """

    prefix: bool
    causal: bool


class CuDNN:
    """Decides which parts of a chunk's attention cuDNN computes, and computes them.

    Args:
        use: ``"always"``: wherever cuDNN supports the shape; ``"measured"``: wherever it is also faster; or
            ``"never"``.
    """

    def __init__(self, use: Literal["always", "never", "measured"]) -> None:
        self.use = use
        self._left_to_cudnn: dict[tuple[int, ...], LeftToCudnn] = {}

    def partials(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix: tuple[Tensor, Tensor],
        start: int,
        params: AttentionParams,
    ) -> tuple[int, CudnnPartials]:
        """Compute the parts of a chunk's attention that are left to cuDNN.

        Args:
            query: queries of the chunk, (1, H, M, D).
            key: keys of the chunk, (1, K, M, D).
            value: values of the chunk, (1, K, M, Dv).
            prefix: keys (K, capacity, D) and values (K, capacity, Dv) of the prefix, token by token in memory.
            start: number of tokens before the chunk.
            params: scale, window and softcap; see `supports`.

        Returns:
            The number of leading prefix tokens that the partial results cover, and the partial results.
        """
        supported = self.supports(params, start + query.shape[2])
        left = self._choose(query, key, value, params) if supported else LeftToCudnn(False, False)
        partials = _causal_part(query, key, value, params.scale) if left.causal else CudnnPartials()
        tokens = start // TILE * TILE if left.prefix else 0
        if tokens:
            keys, values = (item[None, :, :tokens] for item in prefix)
            partials = replace(partials, prefix=_cudnn(query, keys, values, params.scale))
        return tokens, partials

    @staticmethod
    def supports(params: AttentionParams, end: int) -> bool:
        """Whether cuDNN computes this kind of attention up to position ``end``: plain causal, without a softcap."""
        return params.softcap is None and params.is_plain(end)

    def _choose(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> LeftToCudnn:
        if self.use == "never" or not _cudnn_fits(query, value):
            return LeftToCudnn(False, False)
        if self.use == "always":
            return LeftToCudnn(True, True)
        if query.shape[2] < TILE // 2:
            return LeftToCudnn(False, False)
        shape = (query.shape[1], key.shape[1], query.shape[3])
        if shape not in self._left_to_cudnn:
            self._left_to_cudnn[shape] = _measure(query, key, value, params)
        return self._left_to_cudnn[shape]


def _cudnn_fits(query: Tensor, value: Tensor) -> bool:
    size = query.shape[-1]
    halves = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and halves and size == value.shape[-1] and size % 8 == 0 and size <= 128


def _causal_part(query: Tensor, key: Tensor, value: Tensor, scale: float) -> CudnnPartials:
    """A chunk's attention to itself by cuDNN, without a short rest of its queries that is not worth the padding."""
    count = query.shape[2]
    size = (count + FEW_QUERIES // 2) // FEW_QUERIES * FEW_QUERIES
    if size == 0:
        return CudnnPartials()
    queries, keys, values = (
        _padded(item, size) if size > count else item[:, :, :size] for item in (query, key, value)
    )
    return CudnnPartials(
        causal=_cudnn(queries, keys, values, scale, causal=True), causal_queries=min(size, count)
    )


def _padded(tensor: Tensor, size: int) -> Tensor:
    """``tensor`` (1, heads, M, D) padded with zeros to M = ``size``, token by token in memory."""
    whole = tensor.new_zeros(1, size, tensor.shape[1], tensor.shape[3])
    whole[:, : tensor.shape[2]] = tensor.transpose(1, 2)
    return whole.transpose(1, 2)


def _cudnn(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention by cuDNN. Pads the queries, so that cuDNN plans few shapes.

    Args:
        query: (1, H, M, D).
        keys: (1, K, N, D).
        values: (1, K, N, D).
        scale: factor on the scores.
        causal: whether query i sees keys 0 to i only.

    Returns:
        The output (1, H, M or more, D), token by token in memory, and the log-sum-exp (1, H, M or more).
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


def _measure(query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> LeftToCudnn:
    """Measure which parts cuDNN computes faster for a chunk of this shape, which also serves as a tile of prefix."""
    size, device = query.shape[2] // FEW_QUERIES * FEW_QUERIES, query.device
    query, key, value = (item[:, :, :size] for item in (query, key, value))
    keys, values = (item[0].transpose(0, 1).contiguous() for item in (key, value))
    table = upload(table_row(keys, values, [keys], [values]), torch.int64, device)
    states = {
        (base, start): upload(pack_state(base, [start], [0], [0]), torch.int32, device)
        for base, start in ((0, 0), (0, size), (size, size))
    }

    def attend(base: int, start: int, partials: CudnnPartials | None = None) -> Tensor:
        splits = prefix_splits(query, key, start - base)
        state = states[base, start]
        return branch_attention(
            query, key, value, params, table, state, splits, past=False, partials=partials
        )

    def over_tile() -> CudnnPartials:
        tile_keys, tile_values = (item.transpose(0, 1)[None] for item in (keys, values))
        return CudnnPartials(prefix=_cudnn(query, tile_keys, tile_values, params.scale))

    try:
        with on_device(device):
            prefix = _is_faster(
                "a tile and a chunk", lambda: attend(size, size, over_tile()), lambda: attend(0, size)
            )
            causal = _is_faster(
                "a chunk",
                lambda: attend(0, 0, _causal_part(query, key, value, params.scale)),
                lambda: attend(0, 0),
            )
    except RuntimeError as error:  # cuDNN has no plan for this shape; the kernels take every shape
        logger.debug("cuDNN's attention does not take this shape: %s", error)
        return LeftToCudnn(False, False)
    return LeftToCudnn(prefix, causal)


def _is_faster(what: str, with_cudnn: Callable[[], Tensor], alone: Callable[[], Tensor]) -> bool:
    """Whether the work is faster with cuDNN than by the kernels alone, and gives the same result."""
    (theirs, cudnn_ms), (ours, kernels_ms) = _timed(with_cudnn), _timed(alone)
    difference = float((ours.float() - theirs.float()).norm() / ours.float().norm())
    logger.debug(
        "%s: %.3f ms alone, %.3f with cuDNN; relative difference %.1e", what, kernels_ms, cudnn_ms, difference
    )
    return cudnn_ms < kernels_ms and difference < 2e-2


def _timed(work: Callable[[], Tensor], repeats: int = 5) -> tuple[Tensor, float]:
    """A result, and its milliseconds on the device: the best of three series of ``repeats`` back-to-back launches."""
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
