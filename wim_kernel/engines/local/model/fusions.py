"""Patches small operations of a model with fused Triton kernels, for forward passes of the kernel only.

In a decode step, a norm, a rotation or a gate written in PyTorch is five to ten launches, each of which costs more than
its work; in prefill it is five to ten passes over memory. Modules are recognised by their form, compared with their own
code on random numbers, and left alone if the results differ.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wim_kernel.common import forks
from wim_kernel.engines.local.attention.triton_launch import DTYPES, available, interpreted
from wim_kernel.engines.local.model.fused_ops import gated, rms_norm, rotate
from wim_kernel.engines.local.model.patching import ForwardPatch
from wim_kernel.engines.local.model.quantised_linear import QuantisedLinear

ROTARY = "apply_rotary_pos_emb"


class FusedProjections:
    """Linear layers with the same input, such as Q, K and V, computed as one product: narrow ones leave a GPU idle.

    The weights are moved into one tensor, and each layer's parameter becomes a view of it. So they take no more memory
    and remain the layers' own parameters. If the parameters are views no longer (because the model was copied, moved
    or given other weights), the layers are computed one by one.

    Args:
        layers: plain linear layers with the same number of inputs; either all or none have a bias.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self.weight: Tensor | None = _concatenate([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _concatenate(biases) if biases else None
        # the last input of the thread, and the outputs that no layer has taken yet
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self.weight, self.bias = state["layers"], None, None
        self._last = threading.local()

    def product(self, layer: nn.Linear, hidden: Tensor) -> Tensor:
        """The output of one layer. Outputs of the others are kept until they are called with the same input."""
        index = next(index for index, other in enumerate(self.layers) if other is layer)
        source, parts = getattr(self._last, "parts", (None, {}))
        if source is not hidden or index not in parts:
            if not self._is_fused():
                return nn.Linear.forward(layer, hidden)
            whole = nn.functional.linear(hidden, cast(Tensor, self.weight), self.bias)
            parts = dict(enumerate(torch.split(whole, [other.out_features for other in self.layers], -1)))
        part = parts.pop(index)
        self._last.parts = (hidden, parts) if parts else (None, {})
        return part

    def _is_fused(self) -> bool:
        """Whether the layers' parameters are still views of the fused tensors. If not, releases those tensors."""
        if self.weight is not None and not (
            _are_views(self.weight, [layer.weight for layer in self.layers])
            and (self.bias is None or _are_views(self.bias, [layer.bias for layer in self.layers]))
        ):
            self.weight = self.bias = None
        return self.weight is not None


def _are_views(whole: Tensor, parts: Sequence[Tensor | None]) -> bool:
    """Whether the parts are consecutive views of one tensor."""
    address, storage_ptr = whole.data_ptr(), whole.untyped_storage().data_ptr()
    for part in parts:
        if part is None or part.dtype != whole.dtype or part.data_ptr() != address:
            return False
        if part.untyped_storage().data_ptr() != storage_ptr:
            return False
        address += part.nbytes
    return True


def _concatenate(parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate parameters; each then becomes a view of the result."""
    first = parameters[0].data
    if _are_views(first, parameters):  # they were concatenated before
        return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(
        parameters, torch.split(whole, [len(item) for item in parameters]), strict=True
    ):
        parameter.data = part
    return whole


def _qkv_projections(module: nn.Module) -> list[nn.Linear]:
    """The Q, K and V projections of an attention layer, if they can be fused; else an empty list."""
    found = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    layers = [layer for layer in found if type(layer) is nn.Linear and "forward" not in vars(layer)]
    if len(layers) < 3:
        return []
    shapes = {
        (layer.in_features, layer.weight.dtype, layer.weight.device, layer.bias is None) for layer in layers
    }
    plain = all(
        type(layer.weight) is nn.Parameter and layer.weight.is_contiguous() and not layer._forward_hooks
        for layer in layers
    )
    return layers if len(shapes) == 1 and plain and layers[0].weight.dtype in DTYPES else []


class Fusions(ForwardPatch):
    """Patches a model with fused operations.

    Args:
        model: a causal LM.
        enabled: called at each forward; if it returns False, the model's own code runs.
    """

    def __init__(self, model: PreTrainedModel, enabled: Callable[[], bool]) -> None:
        super().__init__(model, enabled)
        self._rotaries: dict[str, _RotaryPatch] = {}  # by the module of the model's code that they patch

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "enabled": self.enabled, "_patched": None, "_rotaries": {}}

    def install(self) -> None:
        """Patch the model; does nothing if it is patched."""
        # parameters that are moved must remain trainable, whatever mode the caller is in
        with torch.inference_mode(False), torch.no_grad():
            super().install()

    def _patch_all(self) -> None:
        replacements: dict[type, Replacement | None] = {}
        dtype = next(self.model.get_input_embeddings().parameters()).dtype  # that of inputs and results
        for module in self.model.modules():
            weight = next(module.parameters(), None)
            if weight is None or "forward" in vars(module) or not available(weight.device):
                continue
            if type(module) not in replacements:
                like = torch.empty(0, dtype=dtype, device=weight.device)
                replacements[type(module)] = _match_rms_norm(module) or _match_gated_mlp(module, like)
                self._patch_rotary(module, like)
            replacement = replacements[type(module)]
            if replacement is not None:
                self._patch(module, replacement)
            layers = _qkv_projections(module)
            if layers:
                projections = FusedProjections(layers)
                for layer in layers:
                    self._patch(layer, projections.product)

    def uninstall(self) -> None:
        """Restore the model."""
        super().uninstall()
        for name, rotary in self._rotaries.items():
            with _rotaries_lock:
                rotary.users -= 1
                file = sys.modules[name]
                if rotary.users == 0 and getattr(file, ROTARY, None) is rotary:
                    setattr(file, ROTARY, rotary.original)
        self._rotaries = {}

    def _forward(self, module: nn.Module, replacement: Replacement, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not self.enabled() or not _fits(args[0]):
            return type(module).forward(module, *args, **kwargs)
        return replacement(module, args[0])

    def _patch_rotary(self, module: nn.Module, like: Tensor) -> None:
        """Patch the rotation function in the code of an attention layer, which all models of that code share."""
        file = sys.modules[type(module).__module__]
        if file.__name__ in self._rotaries or not hasattr(module, "layer_idx"):
            return
        with _rotaries_lock:
            rotary = getattr(file, ROTARY, None)
            if rotary is None or (
                not isinstance(rotary, _RotaryPatch) and not _rotates_the_same(rotary, like)
            ):
                return
            if not isinstance(rotary, _RotaryPatch):
                rotary = _RotaryPatch(rotary, self.enabled)
                setattr(file, ROTARY, rotary)
            rotary.users += 1
            self._rotaries[file.__name__] = rotary


def _renew_after_fork() -> None:
    global _rotaries_lock
    _rotaries_lock = threading.Lock()


_rotaries_lock = threading.Lock()
forks.in_child(_renew_after_fork)
Replacement = Callable[[Any, Tensor], Tensor]
"""A function of a module and its input, in place of the module's ``forward``."""


class _RotaryPatch:
    """A rotation function: the fused one in forward passes of the kernel, the model's own otherwise.

    Attributes:
        original: the model's own function.
        enabled: returns whether this is a forward pass of the kernel.
        users: number of models that have installed the patch.
    """

    def __init__(self, original: Callable[..., tuple[Tensor, Tensor]], enabled: Callable[[], bool]) -> None:
        self.original = original
        self.enabled = enabled
        self.users = 0

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        plain = not args and not kwargs and cos.ndim == 3 and cos.shape[-1] == q.shape[-1] == k.shape[-1]
        dense = q.stride(-1) == k.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1
        if plain and dense and self.enabled() and _fits(q) and cos.stride() == sin.stride():
            return rotate(q, k, cos, sin)
        return self.original(q, k, cos, sin, *args, **kwargs)


def _fits(tensor: Tensor) -> bool:
    return tensor.is_cuda or interpreted()


def _match_rms_norm(module: nn.Module) -> Replacement | None:
    """The replacement for a module that is a root mean square norm; None for any other module."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        weight is None
        or weight.ndim != 1
        or not isinstance(eps, float)
        or len(list(module.parameters())) != 1
    ):
        return None

    for around_one in (False, True):
        candidate = functools.partial(_norm, around_one=around_one)
        if _gives_the_same(module, candidate, weight.shape[0], weight):
            return candidate
    return None


def _norm(module: Any, hidden: Tensor, around_one: bool) -> Tensor:
    if module.weight.dtype != hidden.dtype:
        plain: Tensor = type(module).forward(module, hidden)
        return plain
    return rms_norm(hidden.contiguous(), module.weight, _eps(module), around_one=around_one)


def _eps(module: nn.Module) -> Any:
    """The epsilon of a norm, which models call by different names."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _match_gated_mlp(module: nn.Module, like: Tensor) -> Replacement | None:
    """The replacement for a module that is a gated MLP with SiLU; None for any other module."""
    names = ("gate_proj", "up_proj", "down_proj")
    parts: list[Any] = [getattr(module, name, None) for name in names]
    if not all(isinstance(part, (nn.Linear, QuantisedLinear)) for part in parts):
        return None
    width: int = parts[0].in_features
    if any(isinstance(part, QuantisedLinear) for part in parts):
        # rounding would hide whether the form is the same
        module, width = copy.copy(module), 64
        module._modules = {**module._modules, **{name: _plain_linear(width, like) for name in names}}
    return _gated_mlp if _gives_the_same(module, _gated_mlp, width, like) else None


def _plain_linear(width: int, like: Tensor) -> nn.Linear:
    return nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)


def _gated_mlp(module: Any, hidden: Tensor) -> Tensor:
    result: Tensor = module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))
    return result


def _gives_the_same(module: nn.Module, replacement: Replacement, width: int, like: Tensor) -> bool:
    """Whether the replacement gives the same as the module, on random numbers of several magnitudes."""
    try:
        hidden = torch.randn(2, 3, width, device=like.device, dtype=like.dtype)
        sizes = torch.tensor([1.0, 1e-3, 30.0], device=like.device, dtype=like.dtype)[:, None]
        return _close(replacement(module, hidden * sizes), type(module).forward(module, hidden * sizes))
    except Exception:  # a module of another form may raise anything
        return False


def _rotates_the_same(original: Callable[..., tuple[Tensor, Tensor]], like: Tensor) -> bool:
    try:
        make = functools.partial(torch.randn, device=like.device, dtype=like.dtype)
        query, key, cos, sin = make(2, 3, 5, 16), make(2, 1, 5, 16), make(2, 5, 16), make(2, 5, 16)
        return all(map(_close, rotate(query, key, cos, sin), original(query, key, cos, sin)))
    except Exception:  # the function takes other arguments, or there are no random numbers of this dtype
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    found, expected = found.float(), expected.float()
    # row by row, so that rows of small magnitude count too
    close = (found - expected).norm(dim=-1) <= tolerance * expected.norm(dim=-1)
    return found.shape == expected.shape and bool(close.all())
