"""Which code computes attention: chosen by the device, the shape and a measurement, or named by the user."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from wim_kernel.engines.local.attention import Terms
from wim_kernel.engines.local.branch_attention import (
    DTYPES,
    available,
    branch_attention,
    on_device,
    pack_state,
    prefix_splits,
    table_row,
)
from wim_kernel.engines.local.graphs import Graphs
from wim_kernel.engines.local.runner import ModelRunner, upload
from wim_kernel.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

Attention = Literal["auto", "parts", "kernels", "cudnn"]
TILE = 4096  # keys of a tile: few shapes, since cuDNN makes a plan for each, which takes some 45 ms
FEW_QUERIES = 1024  # queries are padded to a multiple of this, for the same reason


class Paths:
    """The ways attention is computed for one model.

    Args:
        attention: ``"parts"``: plain PyTorch; ``"kernels"``: Triton; ``"cudnn"``: Triton, and long runs of earlier
            chunks by cuDNN while a chunk is read, where it has that type and size of heads; ``"auto"``: Triton on a
            CUDA device, cuDNN for such runs if it measures quicker, and plain PyTorch elsewhere.
        runner: the model.

    Raises:
        UnsupportedModelError: if the device does not have what is named.
        ValueError: if there is no such way.
    """

    def __init__(self, attention: Attention, runner: ModelRunner) -> None:
        if attention not in get_args(Attention):
            raise ValueError(f"attention is one of {', '.join(get_args(Attention))}, not {attention!r}.")
        device, dtype = runner.device, runner.model.dtype
        fits = available(device) and dtype in DTYPES
        if attention in ("kernels", "cudnn") and not fits:
            raise UnsupportedModelError(
                f"attention={attention!r} needs Triton, a CUDA device and a floating-point type of 16 or 32 bits; this "
                f"model is {dtype} on {device.type}."
            )
        self.attention = attention
        self.kernels = attention in ("kernels", "cudnn") or (
            attention == "auto" and fits and device.type == "cuda"
        )
        if self.kernels:
            runner.fuse()
        self.graphs = Graphs(runner)
        self._tiled: dict[tuple[int, ...], bool] = {}

    def give_up_kernels(self) -> None:
        """Go on in plain PyTorch: the kernels do not run here."""
        self.kernels = False
        self.graphs.runner.unfuse()

    def tiles(
        self, query: Tensor, keys: Tensor, values: Tensor, start: int, terms: Terms
    ) -> tuple[int, tuple[Tensor, Tensor] | None]:
        """Attention of a chunk's queries over the whole tiles before it, where a library is quicker at that.

        Args:
            query: (1, H, M, D).
            keys: (K, capacity, D), token by token in memory.
            values: (K, capacity, Dv), likewise.
            start: how many tokens stand before the chunk.
            terms: with a cap, or a window that ends before the document, all is left to the kernels.

        Returns:
            How many tokens were attended to, and the output (1, H, M or more, Dv) with its log-sum-exp; or 0 and None.
        """
        tokens = start // TILE * TILE
        plain = terms.softcap is None and (terms.window is None or terms.window >= start + query.shape[2])
        if tokens == 0 or not plain or not self._wants_tiles(query, keys, values, terms):
            return 0, None
        return tokens, _cudnn(query, keys[:, :tokens], values[:, :tokens], terms.scale)

    def _wants_tiles(self, query: Tensor, keys: Tensor, values: Tensor, terms: Terms) -> bool:
        if self.attention == "kernels" or not _cudnn_fits(query, values):
            return False
        if self.attention == "cudnn":
            return True
        if query.shape[2] < TILE // 2:
            return False
        shape = (query.shape[1], keys.shape[0], query.shape[3])
        if shape not in self._tiled:
            self._tiled[shape] = _is_quicker(query, keys[:, :TILE], values[:, :TILE], terms)
        return self._tiled[shape]


def _cudnn_fits(query: Tensor, values: Tensor) -> bool:
    size = query.shape[-1]
    halves = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and halves and size == values.shape[-1] and size % 8 == 0 and size <= 128


def _cudnn(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention without a mask by cuDNN: output (1, H, M or more, D), token by token, log-sum-exp (1, H, M or more).

    Queries are padded and strides are those of a tile, so that few plans are made.
    """
    _, heads, count, size = query.shape
    padded = -(-count // FEW_QUERIES) * FEW_QUERIES
    if padded > count:
        whole = query.new_zeros(1, padded, heads, size)
        whole[:, :count] = query.transpose(1, 2)
        query = whole.transpose(1, 2)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, keys[None], values[None], None, True, 0.0, False, False, scale=scale
    )
    if out.stride()[1:] != (size, heads * size, 1):
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out, lse.reshape(1, heads, padded)


def _is_quicker(query: Tensor, keys: Tensor, values: Tensor, terms: Terms) -> bool:
    """Whether a chunk's attention over one tile and itself is done sooner with cuDNN's help; that it is the same."""
    (heads, tile, size), device = keys.shape, query.device
    key, value = (item.new_zeros(1, query.shape[2], heads, size).transpose(1, 2) for item in (keys, values))
    own_key, own_value = torch.empty_like(key), torch.empty_like(value)
    table = upload(table_row(keys, values, [own_key], [own_value]), torch.int64, device)
    splits = prefix_splits(query, key, tile)

    def attend(splits: int, outer: tuple[Tensor, Tensor] | None = None) -> Tensor:
        state = upload(pack_state(0, [tile], [0], [0]), torch.int32, device)
        return branch_attention(query, key, value, terms, table, state, splits, past=False, outer=outer)

    try:
        with on_device(device):
            ours, by_kernels = _timed(lambda: attend(splits))
            theirs, by_cudnn = _timed(lambda: attend(0, _cudnn(query, keys, values, terms.scale)))
    except RuntimeError as error:  # no plan for this shape: the kernels take any
        logger.debug("cuDNN's attention does not take this shape: %s", error)
        return False
    apart = float((ours.float() - theirs.float()).norm() / ours.float().norm())
    logger.debug("a tile takes %.2f ms alone, %.2f ms with cuDNN; apart by %.1e", by_kernels, by_cudnn, apart)
    return by_cudnn < by_kernels and apart < 2e-2


def _timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A result, and the milliseconds that the best of three takes on the device."""
    result, best = work(), float("inf")
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return result, best
