"""The model's own forward pass, with attention that belongs to the step in hand.

Everything but attention (and, on some processors, the library that multiplies) is the model's code, untouched. A
function registered with transformers' attention interface asks which step this thread is in and lets it attend; outside
any step it falls through to the implementation the model had before, so the same loaded model stays free for other use,
also from other threads.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.model.fusions import Fusions
from wim_kernel.engines.local.model.onednn import Products

PREFIX = "wim_"
_META = torch.device("meta")  # of weights that wait elsewhere


class Step(Protocol):
    """One forward pass of the kernel, as attention sees it."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention of one layer.

        Args:
            layer: the layer's index.
            query: (rows, heads, M, D), rotated.
            key: (rows, key heads, M, D), the new tokens' alone, rotated.
            value: (rows, key heads, M, Dv).
            terms: scale, window and the like.

        Returns:
            (rows, M, heads, Dv).
        """


_step: ContextVar[Step | None] = ContextVar("wim_step", default=None)
_fusing: ContextVar[bool] = ContextVar("wim_fusing", default=False)


@contextmanager
def active(step: Step, *, fusing: bool = False) -> Iterator[None]:
    """Attention of this thread belongs to ``step``; with ``fusing``, small operations are fused."""
    tokens = _step.set(step), _fusing.set(fusing)
    try:
        yield
    finally:
        _step.reset(tokens[0])
        _fusing.reset(tokens[1])


def _in_step() -> bool:
    return _step.get() is not None


def _is_fusing() -> bool:
    return _fusing.get()


def _attention(
    original: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    step = _step.get()
    if step is None:
        known = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        given = {name: item for name, item in known.items() if item is not None}
        result: tuple[Tensor, Tensor | None] = _implementation(original, module)(
            module, query, key, value, attention_mask, **given, **kwargs
        )
        return result
    if kwargs.get("position_bias") is not None or not getattr(module, "is_causal", True):
        raise UnsupportedModelError(
            f"{type(module).__name__} attends in a way that has no shared-prefix form."
        )
    terms = Terms(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return step.attend(layer, query, key, value, terms), None


def _implementation(name: str, module: nn.Module) -> Any:
    """The attention function called ``name``; eager ones live in the model's own file."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _mask(original: str, *args: Any, **kwargs: Any) -> Any:
    """No mask inside a step, whose attention knows who sees whom; the original's mask outside."""
    if _step.get() is not None:
        return None
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(original)
    return None if make is None else make(*args, **kwargs)


class ModelRunner:
    """A causal language model whose attention can be lent to a step.

    Args:
        model: a transformers causal LM in eval mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = next(model.get_input_embeddings().parameters()).device
        self.spread = any(weight.device not in (self.device, _META) for weight in model.parameters())
        self.products = Products(model, wanted=_in_step)
        self.fusions: Fusions | None = None

    def device_of(self, layer: int) -> torch.device:
        """Where a layer of the model attends; that of its own weights."""
        for module in self.model.modules():
            if getattr(module, "layer_idx", None) == layer:
                weight = next(module.parameters(), None)
                if weight is not None and weight.device.type != "meta":
                    return weight.device
        return self.device

    def fuse(self) -> None:
        """Lend fused operations too, from now on."""
        self.fusions = Fusions(self.model, wanted=_is_fusing)

    def unfuse(self) -> None:
        """Lend fused operations no more."""
        self.uninstall()
        self.fusions = None

    def install(self) -> None:
        """Put the kernel's attention and products in front of the model's own; does nothing if they are there."""
        self.products.install()
        if self.fusions is not None:
            self.fusions.install()
        current = self.model.config._attn_implementation
        if current.startswith(PREFIX):
            return
        name = PREFIX + current
        AttentionInterface.register(name, functools.partial(_attention, current))
        AttentionMaskInterface.register(name, functools.partial(_mask, current))
        self.model.set_attn_implementation(name)
        if self.model.config._attn_implementation != name:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not use transformers' attention interface."
            )

    def uninstall(self) -> None:
        """Give the model back as it was."""
        self.products.uninstall()
        if self.fusions is not None:
            self.fusions.uninstall()
        current = self.model.config._attn_implementation
        if current.startswith(PREFIX):
            self.model.set_attn_implementation(current.removeprefix(PREFIX))

    @torch.inference_mode()
    def forward(self, ids: Tensor, positions: Tensor, step: Step, keep: Tensor | int) -> Tensor:
        """Run tokens at positions, both (rows, M), under ``step``.

        Args:
            ids: token ids.
            positions: position ids, from 0.
            step: whose attention it is.
            keep: how many last slots', or which slots', logits are wanted.

        Returns:
            Logits (rows, kept, vocabulary).
        """
        self.install()
        device = self.device
        kept = keep
        if isinstance(keep, Tensor):
            # what indexes a model's last states has to be where they are: on several devices, nobody says where
            kept = ids.shape[1] - int(keep.min()) if self.spread else moved(keep, device)
        with active(step, fusing=self.fusions is not None):
            logits: Tensor = self.model(
                input_ids=moved(ids, device),
                position_ids=moved(positions, device),
                use_cache=False,
                logits_to_keep=kept,
            ).logits
        return logits[:, keep - keep.min()] if self.spread and isinstance(keep, Tensor) else logits


def upload(
    numbers: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Numbers on a device, without waiting for what the device is doing."""
    return moved(torch.tensor(numbers, dtype=dtype), device)


def stream_of(device: torch.device) -> int:
    """The stream on which this thread's work for a device goes; 0 for a device without streams."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what the device is doing."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
