"""Linear layers with quantised weights, and layers of one input computed as one product."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class QuantisedLinear(nn.Module, ABC):
    """A linear layer with quantised weights.

    Its state dict holds the weights in float32, as a plain linear layer's does, so a saved model is a plain checkpoint,
    and plain weights that are loaded are quantised.

    Args:
        layer: the layer whose weights are quantised.

    Attributes:
        weight: quantised weights, (out, in).
        scale: factors on the rows of ``weight``, (out,), float32 whatever the model's dtype.
        bias: the layer's own bias, (out,), or None.
        group: computes the layer together with others that have the same input.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = self.quantised(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias
        self.group = self.grouped([self])
        self.train(layer.training)

    @staticmethod
    @abstractmethod
    def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (out, in) as quantised ones, and the scale of each output, (out,) in float32."""

    @staticmethod
    @abstractmethod
    def grouped(layers: Sequence[Any]) -> Group:
        """A group of layers of this class."""

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantisedLinear:
        weight, scale = self.weight.data, self.scale.data
        self.group.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # another dtype is that of inputs and results
        for kept, before in ((self.weight, weight), (self.scale, scale)):
            if kept.dtype != before.dtype:
                kept.data = before.to(kept.device)
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
        if given is not None and given.dtype != self.weight.dtype:
            parts[prefix + "weight"], parts[prefix + "scale"] = self.quantised(given)
        super()._load_from_state_dict(parts, prefix, *args, **kwargs)


class Group(ABC):
    """Layers that are given the same input, computed as one product.

    Args:
        layers: layers with the same number of inputs.
    """

    def __init__(self, layers: Sequence[QuantisedLinear]) -> None:
        self.layers = tuple(layers)
        # the weights of all layers as the product takes them, and of which versions of them it was made
        self._kept: tuple[list[tuple[int, int]], Any] | None = None
        # the last input of the thread, and the outputs that no layer has taken yet
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self._kept, self._last = state["layers"], None, threading.local()

    def forget(self) -> None:
        """Release the weights as the product takes them; they are made anew when they are needed."""
        self._kept = None

    def product(self, layer: QuantisedLinear, rows: Tensor) -> Tensor:
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

    @abstractmethod
    def _all(self, rows: Tensor) -> Tensor:
        """The outputs of all layers, one after another, (..., sum of out)."""

    @abstractmethod
    def _made(self, weight: Tensor, scale: Tensor) -> Any:
        """The weights of all layers as the product takes them, of (sum of out, in) and (sum of out,)."""

    def _weights(self) -> Any:
        """The weights of all layers as the product takes them, made anew when they have changed."""
        if self._kept is None or self._kept[0] != self._versions():
            with torch.inference_mode(False), torch.no_grad():
                made = self._made(*self._joined())
            self._kept = self._versions(), made
        return self._kept[1]

    def _versions(self) -> list[tuple[int, int]]:
        return [_version(part) for layer in self.layers for part in (layer.weight, layer.scale)]

    def _joined(self) -> tuple[Tensor, Tensor]:
        weights = [layer.weight.detach() for layer in self.layers]
        scales = [layer.scale.detach() for layer in self.layers]
        return (weights[0], scales[0]) if len(weights) == 1 else (torch.cat(weights), torch.cat(scales))


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
