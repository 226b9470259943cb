"""Linear layers with weights in 8 bits, for CPUs.

A weight is a whole number from -127 to 127, times a scale of its output. Each row of inputs is a row of whole numbers
in 16 bits, times a scale of that row. Its upper and lower bytes are multiplied by the weights in one product of 8-bit
numbers, which oneDNN computes by the processor's own instructions (VNNI). All sums are exact, so a row's result depends
on that row alone, whatever the batch, and inputs lose hardly anything: what is lost is the weights' rounding. Inputs of
8 bits would cost half the products and several times the error, and rounding steps as coarse as that turn the smallest
differences between two ways to compute attention into other words.

On processors without VNNI and on other devices the same numbers are multiplied in float32, and where gradients are
wanted the inputs themselves, which is slower than a model that is not quantised.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

MOST = 127
"""Largest whole number of a weight."""
MOST_INPUT = 32_512
"""Largest whole number of an input: 256 times the largest of its upper byte, which is a signed number in 8 bits."""
FEW_ROWS = 16
"""Number of rows for which weights are laid out; the layout works for any number."""
_SMALLEST = 1e-30  # in place of zero, to divide by
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that are given the same input, and are computed as one product."""


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits.

    Its state dict holds the weights in float32, as a plain linear layer's does, so a saved model is a plain checkpoint,
    and plain weights that are loaded are quantised.

    Args:
        layer: the layer whose weights are quantised.

    Attributes:
        weight: whole numbers, (out, in), int8.
        scale: factors on the rows of ``weight``, (out,), float32 whatever the model's dtype.
        bias: the layer's own bias, (out,), or None.
        group: computes the layer together with others that have the same input.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = quantised(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias
        self.group = Group([self])
        self.train(layer.training)

    def forward(self, rows: Tensor) -> Tensor:
        """``rows @ weight.T * scale + bias``, (..., in) to (..., out), in the dtype of ``rows``."""
        if rows.requires_grad and torch.is_grad_enabled():
            result = nn.functional.linear(rows, self.dequantised().to(rows.dtype))
        else:
            result = self.group.product(self, rows)
        return result if self.bias is None else result + self.bias

    def dequantised(self) -> Tensor:
        """The weights in float32, (out, in)."""
        return self.weight.float() * self.scale[:, None]

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        scale = self.scale.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != torch.float32:  # another dtype is that of inputs and results
            self.scale.data = scale.to(self.scale.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dequantised()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given = state_dict.get(prefix + "weight")
        parts = dict(state_dict)
        if given is not None and given.dtype != torch.int8:
            parts[prefix + "weight"], parts[prefix + "scale"] = quantised(given)
        super()._load_from_state_dict(parts, prefix, *args, **kwargs)


class Group:
    """Layers that are given the same input, computed as one product.

    Args:
        layers: layers with the same number of inputs.
    """

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self.layers = tuple(layers)
        self._laid_out: tuple[list[tuple[int, int]], LaidOut] | None = None
        # the last input of the thread, and the outputs that no layer has taken yet
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}  # oneDNN's layout cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self._laid_out, self._last = state["layers"], None, threading.local()

    def product(self, layer: Int8Linear, rows: Tensor) -> Tensor:
        """The output of one layer, without its bias. Outputs of the others are kept until they are asked for.

        Args:
            layer: one of the group's layers.
            rows: the input, (..., in).

        Returns:
            (..., out), in the dtype of ``rows``.
        """
        if len(self.layers) == 1:
            return self._all(rows)
        index = next(index for index, other in enumerate(self.layers) if other is layer)
        source, parts = getattr(self._last, "parts", (None, {}))
        if source is not rows or index not in parts:
            sizes = [other.out_features for other in self.layers]
            parts = dict(enumerate(torch.split(self._all(rows), sizes, -1)))
        part: Tensor = parts.pop(index)
        self._last.parts = (rows, parts) if parts else (None, {})
        return part

    def _all(self, rows: Tensor) -> Tensor:
        """The outputs of all layers, one after another, (..., sum of out)."""
        flat = rows.reshape(-1, rows.shape[-1]).float()
        largest = flat.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST)
        numbers = (flat * (MOST_INPUT / largest)).round_()
        if rows.device.type == "cpu" and multiplies_bytes():
            sums = self._weights().product(_bytes(numbers))
            result = torch.add(sums[len(flat) :], sums[: len(flat)], alpha=256)
        else:
            weight, scale = (torch.cat(parts) for parts in zip(*map(_parts, self.layers), strict=True))
            result = nn.functional.linear(numbers, weight.float()).mul_(scale)
        result = result.mul_(largest.div_(MOST_INPUT)).to(rows.dtype)
        return result.view(*rows.shape[:-1], result.shape[1])

    def _weights(self) -> LaidOut:
        """The weights of all layers, laid out anew when they have changed."""
        versions = [_version(part) for layer in self.layers for part in _parts(layer)]
        if self._laid_out is None or self._laid_out[0] != versions:
            weight, scale = (torch.cat(parts) for parts in zip(*map(_parts, self.layers), strict=True))
            self._laid_out = versions, LaidOut(weight, scale)
        return self._laid_out[1]


def _parts(layer: Int8Linear) -> tuple[Tensor, Tensor]:
    return layer.weight.detach(), layer.scale.detach()


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class LaidOut:
    """Weights in oneDNN's layout.

    Args:
        weight: (N, K) in int8.
        scale: factors on its rows, (N,).
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(
            weight.contiguous(), [FEW_ROWS, weight.shape[1]]
        )
        self.scale = scale.contiguous()
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)

    def product(self, rows: Tensor) -> Tensor:
        """``(rows - 128) @ weight.T * scale``, from (M, K) in uint8 to (M, N) in float32; the sums are exact."""
        result: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            rows, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


def _bytes(numbers: Tensor) -> Tensor:
    """The upper bytes of whole numbers (M, K), then the lower, as (2 M, K) in uint8, each 128 more than it stands for.

    A number is 256 times its upper byte, plus its lower one; both are signed.
    """
    shifted = (numbers + 128).to(torch.int16)
    upper = (shifted >> 8).add_(128)
    return torch.cat((upper.to(torch.uint8), shifted.to(torch.uint8)))  # a cast keeps the lower byte


def quantise(model: PreTrainedModel) -> None:
    """Quantise the linear layers of a model on a CPU, in place.

    Embeddings, norms and whatever else is no `torch.nn.Linear` stay as they are, an embedding that shares its weights
    with the output layer as well.

    Args:
        model: a causal LM.

    Raises:
        ValueError: if the model is not on a CPU, or has no plain linear layers.
    """
    found = {
        id(layer): layer for layer in model.modules() if isinstance(layer, nn.Linear) and _is_plain(layer)
    }
    devices = {layer.weight.device.type for layer in found.values()}
    if devices - {"cpu"}:
        raise ValueError(
            f"weights='int8' is for models on a CPU, and this one is on {', '.join(sorted(devices))}: load it with "
            "device='cpu', or without the option."
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layers that weights='int8' could quantise: it is quantised already, "
            "offloaded, or in use by another kernel."
        )
    replaced: dict[int, Int8Linear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in found:
                if id(child) not in replaced:
                    replaced[id(child)] = Int8Linear(found[id(child)])
                setattr(parent, name, replaced[id(child)])
        for names in SAME_INPUT:
            layers = [getattr(parent, name, None) for name in names]
            same = [layer for layer in layers if isinstance(layer, Int8Linear)]
            if len(same) == len(names) and len({layer.in_features for layer in same}) == 1:
                group = Group(same)
                for layer in same:
                    layer.group = group


def _is_plain(layer: nn.Linear) -> bool:
    return type(layer) is nn.Linear and "forward" not in vars(layer) and layer.weight.is_floating_point()


@functools.cache
def multiplies_bytes() -> bool:
    """Whether oneDNN can multiply 8-bit numbers here by the processor's own instructions (VNNI), and does it exactly.

    Without them it adds pairs of products up in 16 bits, which is too few for numbers as large as these.
    """
    known: Callable[[], bool] | None = getattr(torch.cpu, "_is_vnni_supported", None)
    if known is None or not known():
        return False
    rows = torch.randint(0, 256, (16, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows[0], weight = 255, torch.full((32, 64), MOST, dtype=torch.int8)
    try:
        found = LaidOut(weight, torch.ones(32)).product(rows)
    except (AttributeError, RuntimeError):  # another build of torch
        return False
    return torch.equal(found, (rows.float() - 128) @ weight.float().t())


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (out, in) as whole numbers, int8, and the scale of each output, (out,) in float32."""
    exact = weight.float()
    scale = exact.abs().amax(1).clamp(min=_SMALLEST) / MOST
    return torch.round(exact / scale[:, None]).to(torch.int8), scale
