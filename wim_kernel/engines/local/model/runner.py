"""Runs the model's own forward pass with the attention of a `ForwardContext`.

Everything but attention (and, where patches are installed, small operations and linear layers) is the model's own code.
A function registered with transformers' attention interface looks up the thread's current context and lets it attend.
Without a context it calls the implementation that the model had before, so the same loaded model stays free for other
use, also from other threads.
"""

from __future__ import annotations

import functools
import inspect
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
from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.model.calling import forward_of, input_device
from wim_kernel.engines.local.model.fusions import Fusions
from wim_kernel.engines.local.model.inspection import Inspection
from wim_kernel.engines.local.model.onednn import OneDNNLinears
from wim_kernel.engines.local.model.scans import Scans
from wim_kernel.engines.local.model.states import StateCache, StateLayout, current_states, passing

PREFIX = "wim_"
_META = torch.device("meta")  # of weights that accelerate has offloaded


class ForwardContext(Protocol):
    """The attention of one forward pass: what the pass runs, and what it attends to."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
    ) -> Tensor:
        """Compute the attention of one layer.

        Args:
            layer: index of the layer.
            query: queries of the new tokens, rotated, (rows, heads, M, D).
            key: keys of the new tokens, rotated, (rows, key heads, M, D).
            value: values of the new tokens, (rows, key heads, M, Dv).
            params: scale, window, softcap and sinks.

        Returns:
            (rows, M, heads, Dv).
        """


_context: ContextVar[ForwardContext | Inspection | None] = ContextVar("wim_step", default=None)
_fusing: ContextVar[bool] = ContextVar("wim_fusing", default=False)


@contextmanager
def forward_context(context: ForwardContext | Inspection, *, fusing: bool = False) -> Iterator[None]:
    """Let ``context`` compute this thread's attention; with ``fusing``, fused operations run too."""
    tokens = _context.set(context), _fusing.set(fusing)
    try:
        yield
    finally:
        _context.reset(tokens[0])
        _fusing.reset(tokens[1])


def _in_forward() -> bool:
    return _context.get() is not None


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
    context = _context.get()
    arguments: dict[str, Any] = {}
    if context is None or isinstance(context, Inspection):  # the model's own code attends
        named = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        arguments = {**{name: item for name, item in named.items() if item is not None}, **kwargs}
    if context is None:
        result: tuple[Tensor, Tensor | None] = _implementation(original, module)(
            module, query, key, value, attention_mask, **arguments
        )
        return result
    both_ways = not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False
    if kwargs.get("position_bias") is not None or both_ways:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends in a way that has no shared-prefix form."
        )
    params = AttentionParams(
        query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux
    )
    if isinstance(context, Inspection):
        own = _implementation(original, module)
        return context.attend(own, module, query, key, value, attention_mask, params, arguments), None
    layer: int = module.layer_idx  # type: ignore[assignment]
    states = current_states()
    if states is not None:
        layer = states.attending_layer(layer)
    attended = context.attend(layer, query, key, value, params)
    return attended.contiguous(), None  # some models view it in another shape


def _implementation(name: str, module: nn.Module) -> Any:
    """The attention function that transformers calls ``name``; eager attention is defined in the model's own file."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _mask(original: str, *args: Any, **kwargs: Any) -> Any:
    """No mask in a forward context, whose attention makes its own; without one, the original implementation's."""
    context, make = _context.get(), ALL_MASK_ATTENTION_FUNCTIONS.get(original)
    if isinstance(context, Inspection) and make is not None:
        return context.mask(make, *args, **kwargs)
    return None if context is not None or make is None else make(*args, **kwargs)


class ModelRunner:
    """Runs a causal language model with the kernel's attention in place of its own.

    Args:
        model: a transformers causal LM in eval mode.

    Attributes:
        state_layout: the layers that keep states; None if the model has none.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = input_device(model)
        self.spread = any(weight.device not in (self.device, _META) for weight in model.parameters())
        self.onednn = OneDNNLinears(model, enabled=_in_forward)
        self.fusions: Fusions | None = None
        self.state_layout = StateLayout.of(model.config.get_text_config())
        self.scans = Scans(model)
        self._accepted = inspect.signature(model.forward).parameters

    def device_of(self, layer: int) -> torch.device:
        """The device on which a layer attends: that of its weights."""
        for module in self.model.modules():
            if getattr(module, "layer_idx", None) == layer:
                weight = next(module.parameters(), None)
                if weight is not None and weight.device.type != "meta":
                    return weight.device
        return self.device

    def fuse(self) -> None:
        """From now on, install fused operations too."""
        self.fusions = Fusions(self.model, enabled=_is_fusing)

    def unfuse(self) -> None:
        """Remove all patches; from now on, install no fused operations."""
        self.uninstall()
        self.fusions = None

    def install(self) -> None:
        """Patch the model with the kernel's attention and linear layers; does nothing if it is patched."""
        self.onednn.install()
        if self.state_layout is not None:
            self.scans.install()
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
        """Restore the model."""
        self.onednn.uninstall()
        self.scans.uninstall()
        if self.fusions is not None:
            self.fusions.uninstall()
        current = self.model.config._attn_implementation
        if current.startswith(PREFIX):
            self.model.set_attn_implementation(current.removeprefix(PREFIX))

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        context: ForwardContext | Inspection,
        keep: Tensor | int,
        states: StateCache | None = None,
    ) -> Tensor:
        """Run tokens through the model.

        Args:
            ids: token ids, (rows, M).
            positions: position ids from 0, (rows, M).
            context: computes attention.
            keep: slots whose logits are returned: a number of last slots, or their indices, ascending.
            states: the rows' states, which the pass updates, if the model's layers keep any.

        Returns:
            Logits (rows, kept, vocabulary).
        """
        self.install()
        device = self.device
        kept = keep
        if isinstance(keep, Tensor):
            # indices must be on the device of the last hidden states, which is unknown if the model is spread out
            kept = ids.shape[1] - int(keep.min()) if self.spread else to_device(keep, device)
        arguments: dict[str, Any] = {"use_cache": states is not None}
        if states is not None:
            arguments["cache_params" if "cache_params" in self._accepted else "past_key_values"] = states
        if "position_ids" in self._accepted:  # purely recurrent models have no use for them
            arguments["position_ids"] = to_device(positions, device)
        with forward_context(context, fusing=self.fusions is not None), passing(states):
            logits: Tensor = forward_of(self.model)(
                input_ids=to_device(ids, device), logits_to_keep=kept, **arguments
            ).logits
        return logits[:, keep - keep.min()] if self.spread and isinstance(keep, Tensor) else logits


def upload(
    numbers: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Copy numbers to a device, without waiting for work that is in flight there."""
    return to_device(torch.tensor(numbers, dtype=dtype), device)


def stream_of(device: torch.device) -> int:
    """The id of this thread's current stream on a device; 0 for a device without streams."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without waiting for work that is in flight there."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
