"""Small operations of a model, each fused into one Triton kernel and lent to it inside a step.

At a decode step's size a norm, a rotation or a gate written in PyTorch is five to ten launches that each cost more than
their work; in prefill each is five to ten passes over memory. What is lent here is found by its form, tried against
the model's own code on random numbers, and left alone where it differs; outside a step the model runs by itself.
"""

from __future__ import annotations

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
from wim_kernel.engines.local.model.patching import Lender

ROTARY = "apply_rotary_pos_emb"


class Joint:
    """Linear layers that are given the same input, multiplied as one: narrow ones alone leave most of the chip idle.

    Their weights are moved into one tensor, of which each layer's parameter becomes a view, so they take no more
    memory and stay the layers' own. Where they are taken apart again (a model is copied, moved, or given other
    weights), layers are multiplied one by one.

    Args:
        layers: plain linear layers with the same number of inputs, that have biases, or have none.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self.weight: Tensor | None = _moved_together([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _moved_together(biases) if biases else None
        # the input that was multiplied last, and products not asked for yet
        self._waiting = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self.weight, self.bias = state["layers"], None, None
        self._waiting = threading.local()

    def product(self, layer: nn.Linear, hidden: Tensor) -> Tensor:
        """A layer's product; the others' are kept for when they ask with the same input."""
        place = next(index for index, other in enumerate(self.layers) if other is layer)
        source, parts = getattr(self._waiting, "parts", (None, {}))
        if source is not hidden or place not in parts:
            if not self._together():
                return nn.Linear.forward(layer, hidden)
            whole = nn.functional.linear(hidden, cast(Tensor, self.weight), self.bias)
            parts = dict(enumerate(torch.split(whole, [other.out_features for other in self.layers], -1)))
        part = parts.pop(place)
        self._waiting.parts = (hidden, parts) if parts else (None, {})
        return part

    def _together(self) -> bool:
        """Whether the parameters are still views of ours. Once they are not, ours are let go."""
        if self.weight is not None and not (
            _views(self.weight, [layer.weight for layer in self.layers])
            and (self.bias is None or _views(self.bias, [layer.bias for layer in self.layers]))
        ):
            self.weight = self.bias = None
        return self.weight is not None


def _views(whole: Tensor, parts: Sequence[Tensor | None]) -> bool:
    """Whether the parts are views of one tensor, one behind the other."""
    at, home = whole.data_ptr(), whole.untyped_storage().data_ptr()
    for part in parts:
        if part is None or part.dtype != whole.dtype or part.data_ptr() != at:
            return False
        if part.untyped_storage().data_ptr() != home:
            return False
        at += part.nbytes
    return True


def _moved_together(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of which the parameters become views."""
    first = parameters[0].data
    if _views(first, parameters):  # they are already
        return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(
        parameters, torch.split(whole, [len(item) for item in parameters]), strict=True
    ):
        parameter.data = part
    return whole


def _joint_form(module: nn.Module) -> list[nn.Linear]:
    """The projections of an attention layer that may be multiplied as one; none if it has no such."""
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


class Fusions(Lender):
    """Lends fused operations to a model.

    Args:
        model: a causal LM.
        wanted: asked at each call; if it says no, the model's own code runs.
    """

    def __init__(self, model: PreTrainedModel, wanted: Callable[[], bool]) -> None:
        super().__init__(model, wanted)
        self._rotaries: dict[str, _Rotary] = {}  # by the file that they are lent to

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "wanted": self.wanted, "_lent": None, "_rotaries": {}}

    def install(self) -> None:
        """Put the operations in place; does nothing if they are."""
        # weights that are moved stay good for training, whatever mode this is asked in
        with torch.inference_mode(False), torch.no_grad():
            super().install()

    def _lend_all(self) -> None:
        forms: dict[type, Form | None] = {}
        for module in self.model.modules():
            weight = next(module.parameters(), None)
            if weight is None or "forward" in vars(module) or not available(weight.device):
                continue
            if type(module) not in forms:
                forms[type(module)] = _norm_form(module) or _gate_form(module)
                self._lend_rotary(module, weight)
            form = forms[type(module)]
            if form is not None:
                self._lend(module, form)
            layers = _joint_form(module)
            if layers:
                joint = Joint(layers)
                for layer in layers:
                    self._lend(layer, joint.product)

    def uninstall(self) -> None:
        """Give everything back as it was."""
        super().uninstall()
        for name, rotary in self._rotaries.items():
            with _rotaries_lock:
                rotary.users -= 1
                home = sys.modules[name]
                if rotary.users == 0 and getattr(home, ROTARY, None) is rotary:
                    setattr(home, ROTARY, rotary.original)
        self._rotaries = {}

    def _forward(self, module: nn.Module, form: Form, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not self.wanted() or not _fits(args[0]):
            return type(module).forward(module, *args, **kwargs)
        return form(module, args[0])

    def _lend_rotary(self, module: nn.Module, weight: Tensor) -> None:
        """Put ours in front of the rotation that an attention layer's file defines, which all its models share."""
        home = sys.modules[type(module).__module__]
        if home.__name__ in self._rotaries or not hasattr(module, "layer_idx"):
            return
        with _rotaries_lock:
            rotary = getattr(home, ROTARY, None)
            if rotary is None or (not isinstance(rotary, _Rotary) and not _rotates_alike(rotary, weight)):
                return
            if not isinstance(rotary, _Rotary):
                rotary = _Rotary(rotary, self.wanted)
                setattr(home, ROTARY, rotary)
            rotary.users += 1
            self._rotaries[home.__name__] = rotary


def _renew_after_fork() -> None:
    global _rotaries_lock
    _rotaries_lock = threading.Lock()


_rotaries_lock = threading.Lock()
forks.in_child(_renew_after_fork)
Form = Callable[[Any, Tensor], Tensor]


class _Rotary:
    """A rotation that is ours inside a step, and the model's outside one.

    Attributes:
        original: the model's.
        wanted: says whether this is inside a step.
        users: how many models it was lent to.
    """

    def __init__(self, original: Callable[..., tuple[Tensor, Tensor]], wanted: Callable[[], bool]) -> None:
        self.original = original
        self.wanted = wanted
        self.users = 0

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        plain = not args and not kwargs and cos.ndim == 3 and cos.shape[-1] == q.shape[-1] == k.shape[-1]
        dense = q.stride(-1) == k.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1
        if plain and dense and self.wanted() and _fits(q) and cos.stride() == sin.stride():
            return rotate(q, k, cos, sin)
        return self.original(q, k, cos, sin, *args, **kwargs)


def _fits(tensor: Tensor) -> bool:
    return tensor.is_cuda or interpreted()


def _norm_form(module: nn.Module) -> Form | None:
    """The module as a root mean square norm, if it is one."""
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
        if _alike(module, candidate, weight.shape[0], weight):
            return candidate
    return None


def _norm(module: Any, hidden: Tensor, around_one: bool) -> Tensor:
    if module.weight.dtype != hidden.dtype:
        plain: Tensor = type(module).forward(module, hidden)
        return plain
    return rms_norm(hidden.contiguous(), module.weight, _eps(module), around_one=around_one)


def _eps(module: nn.Module) -> Any:
    """What a norm adds to the mean of squares, under either of the names it has."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _gate_form(module: nn.Module) -> Form | None:
    """The module as a gated MLP with SiLU, if it is one."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    if len(linear) < 3:
        return None

    return _gated_mlp if _alike(module, _gated_mlp, linear[0].in_features, linear[0].weight) else None


def _gated_mlp(module: Any, hidden: Tensor) -> Tensor:
    result: Tensor = module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))
    return result


def _alike(module: nn.Module, form: Form, width: int, weight: Tensor) -> bool:
    """Whether the form gives what the module gives, on random numbers of several sizes."""
    try:
        hidden = torch.randn(2, 3, width, device=weight.device, dtype=weight.dtype)
        sizes = torch.tensor([1.0, 1e-3, 30.0], device=weight.device, dtype=weight.dtype)[:, None]
        return _close(form(module, hidden * sizes), type(module).forward(module, hidden * sizes))
    except Exception:  # whatever another form of module raises here, it is not this one
        return False


def _rotates_alike(original: Callable[..., tuple[Tensor, Tensor]], weight: Tensor) -> bool:
    try:
        make = functools.partial(torch.randn, device=weight.device, dtype=weight.dtype)
        query, key, cos, sin = make(2, 3, 5, 16), make(2, 1, 5, 16), make(2, 5, 16), make(2, 5, 16)
        return all(map(_close, rotate(query, key, cos, sin), original(query, key, cos, sin)))
    except Exception:  # other arguments under that name, or weights of a type without random numbers
        return False


def _close(found: Tensor, wanted: Tensor) -> bool:
    tolerance = 1e-5 if wanted.dtype == torch.float32 else 2e-2
    found, wanted = found.float(), wanted.float()
    # row by row: small ones count, too
    close = (found - wanted).norm(dim=-1) <= tolerance * wanted.norm(dim=-1)
    return found.shape == wanted.shape and bool(close.all())
