"""Checks each layer's attention, when a model is loaded, against what the kernel would compute in its place.

The kernel computes attention from the arguments that a model passes to transformers' attention interface, and makes the
mask by itself. A few tokens do not tell whether the model's own code does the same: a window may be longer than they
are, and a bound on the scores hardly shows while scores are small. So one pass of the model is inspected, in which its
own code attends: each mask is asked about far positions too, and each layer's attention is compared on queries that are
enlarged until the scores are large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.attention.parts import AttentionParams, extend_attention

_LARGEST_SCORE = 30.0
_TOLERANCE = 1e-2
_FARTHEST = 2**20  # positions

_Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Inspection:
    """The attention of a pass in which the model's own code attends, and each layer is checked."""

    def __init__(self) -> None:
        self._made: list[tuple[Tensor, _Visible]] = []

    def mask(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a mask as the model's implementation of attention does, and remember what it shows."""
        made = make(*args, **{**kwargs, "allow_is_causal_skip": False})
        if isinstance(made, Tensor) and "mask_function" in kwargs:
            self._made.append((made, kwargs["mask_function"]))
        return made

    def attend(
        self,
        implementation: Callable[..., tuple[Tensor, Any]],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        params: AttentionParams,
        arguments: dict[str, Any],
    ) -> Tensor:
        """Attend as the model's own implementation does, and check that the kernel's attention is the same.

        Args:
            implementation: the attention function that the model uses.
            module: the layer's attention.
            query: (1, heads, M, D).
            key: (1, key heads, M, D).
            value: (1, key heads, M, Dv).
            mask: the mask that the model passes on.
            params: what the kernel would compute attention with.
            arguments: all further arguments of ``implementation``.

        Returns:
            (1, M, heads, Dv).

        Raises:
            UnsupportedModelError: if the kernel's attention would be another.
        """
        name = type(module).__name__
        if key.shape[2] != query.shape[2]:
            raise UnsupportedModelError(
                f"{name} attends to {key.shape[2]} keys, of which this pass has computed {query.shape[2]}"
            )
        if isinstance(mask, Tensor):
            self._check_mask(name, mask, params)
            large = _enlarged(query, key, params)
            cast = mask.float() if mask.is_floating_point() else mask
            own = implementation(module, large, key.float(), value.float(), cast, **arguments)[0]
            found = extend_attention(large, key[0].float(), value[0].float(), 0, params)
            if not (found - own).norm() <= _TOLERANCE * own.norm():
                raise UnsupportedModelError(
                    f"{name} attends in another way than the arguments that it passes on say: look for a scale, a "
                    "bound on the scores or a bias of its own"
                )
        return implementation(module, query, key, value, mask, **arguments)[0]

    def _check_mask(self, name: str, mask: Tensor, params: AttentionParams) -> None:
        found = [visible for made, visible in self._made if _same_memory(made, mask)]
        found = found or [visible for made, visible in self._made if _is_copy(mask, made)]
        if not found:
            raise UnsupportedModelError(f"{name} uses a mask that transformers' mask interface did not make")
        faults = [_fault(name, visible, params, mask.device) for visible in found]
        if all(faults):  # masks of several kinds may be equal for the few tokens of this pass
            raise UnsupportedModelError(faults[0])


def _fault(name: str, visible: _Visible, params: AttentionParams, device: torch.device) -> str:
    """In what a mask differs from what the kernel would show to a layer; empty if in nothing."""
    query, key = _far_positions(params.window, device)
    zero = torch.zeros_like(query)
    try:
        shown = visible(zero, zero, query, key).expand(query.shape)
    except (IndexError, RuntimeError, TypeError):
        return f"{name} uses a mask that is made for these very tokens"
    wrong = shown != params.visible(query, key)
    if not bool(wrong.any()):
        return ""
    at = int(wrong.nonzero()[0])
    does = "sees" if bool(shown[at]) else "does not see"
    says = "passes no window on" if params.window is None else f"says that its window is {params.window}"
    return f"in {name} the token at position {int(query[at])} {does} the one at {int(key[at])}, and the layer {says}"


def _far_positions(window: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of queries and of keys, pair by pair: near and far, and on both sides of a window's end."""
    sizes = {0, _FARTHEST, *(2**power for power in range(20)), *([] if window is None else [window])}
    near = sorted({size + by for size in sizes for by in (-1, 0, 1) if size + by >= 0})
    queries = torch.tensor(near, device=device)[:, None]
    distances = torch.tensor([*near, -1, -2, -64], device=device)[None]
    keys = queries - distances
    kept = keys >= 0
    return queries.expand_as(keys)[kept], keys[kept]


def _enlarged(query: Tensor, key: Tensor, params: AttentionParams) -> Tensor:
    """The queries in float32, times what makes the largest score `_LARGEST_SCORE`."""
    key_heads = key.shape[1]
    grouped = query.float().unflatten(1, (key_heads, -1))  # type: ignore[no-untyped-call]
    scores = torch.matmul(grouped, key.float()[:, :, None].transpose(-1, -2)) * params.scale
    return query.float() * (_LARGEST_SCORE / scores.abs().max().clamp(min=1e-6))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether one tensor is the other, or a view of it."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _is_copy(tensor: Tensor, original: Tensor) -> bool:
    """Whether a tensor is the original on another device, where a model that is spread out needs it."""
    if tensor.device == original.device or tensor.shape != original.shape or tensor.dtype != original.dtype:
        return False
    return torch.equal(tensor.cpu(), original.cpu())
