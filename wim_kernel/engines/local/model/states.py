"""States of layers that keep no positions: the recurrent, convolution and delta-net layers of hybrid models.

Such a layer sums up what it has read in tensors of a fixed size. A prefix keeps a copy of them at every chunk boundary,
and the rows of a batch start from the copies at their boundaries. Layers with attention share their keys and values as
in any other model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

States = Mapping[str, Tensor]
"""The states of some rows, each (rows, ...), by layer, kind and number: ``"3.recurrent.0"``. Empty before any token."""


class _AttentionLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Hands keys and values back: the kernel's attention stores them."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = tokens

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone."""
        return key_states, value_states

    def get_seq_length(self) -> int:
        """The number of tokens before the pass; for rows that have seen different numbers, the most."""
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys that the new tokens may see, and the first one's position."""
        return self.tokens + query_length, 0


class _MixedLayer(LinearAttentionLayer, _AttentionLayer):  # type: ignore[no-untyped-call, misc, override]
    """A layer that both attends and keeps states."""

    def __init__(self, tokens: int, number_of_states: int) -> None:
        _AttentionLayer.__init__(self, tokens)
        LinearAttentionLayer.__init__(self, number_of_states)


class StateCache(Cache):
    """The cache that the model's own code uses in a pass: states as its layers keep them, and no keys and values.

    Args:
        layout: the model's layers.
        tokens: number of tokens before the pass.
        states: the rows' states. The pass writes over them.
    """

    def __init__(self, layout: StateLayout, tokens: int, states: States) -> None:
        super().__init__(layers=layout.layers(tokens))
        self._fetched: list[Tensor] = []
        self._updated: int | None = None
        for name, state in states.items():
            layer, kind, number = parsed(name)
            self._put(self.layers[layer], kind, number, state)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; remembers the layer."""
        self._updated = layer_idx
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found

    def attending_layer(self, usual: int) -> int:
        """The index of the layer that attends now, which a module that serves several layers gives to its cache alone.

        Args:
            usual: the index that the module has, for a layer that stores no keys.
        """
        layer, self._updated = self._updated, None
        return usual if layer is None else layer

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The recurrent state of a layer, (rows, width, size) or (rows, heads, width, size); None before any token."""
        state: Tensor | None = super().get_recurrent_state(layer_idx, state_idx)
        self._fetched = [] if state is None else [state] if state.ndim == 3 else list(state.unbind(1))
        return state

    def next_scanned(self) -> Tensor | None:
        """The state (rows, width, size) from which the layer scans next: the one fetched last, or its next head's."""
        return self._fetched.pop(0) if self._fetched else None

    @property
    def states(self) -> States:
        """The rows' states as they are now."""
        return {
            f"{index}.{kind}.{number}": state
            for index, layer in enumerate(self.layers)
            if isinstance(layer, LinearAttentionCacheLayerMixin)
            for kind in ("conv", "recurrent")
            for number, state in getattr(layer, f"{kind}_states").items()
            if state is not None
        }

    @staticmethod
    def _put(layer: Any, kind: str, number: int, state: Tensor) -> None:
        getattr(layer, f"{kind}_states")[number] = state
        getattr(layer, f"is_{kind}_states_initialized")[number] = True
        layer.has_previous_state[number] = True
        if kind == "conv":
            layer.conv_kernel_size[number] = state.shape[-1]
            layer.dtype, layer.device = state.dtype, state.device


_current: ContextVar[StateCache | None] = ContextVar("wim_states", default=None)


@contextmanager
def passing(states: StateCache | None) -> Iterator[None]:
    """Let a forward pass of this thread use ``states``."""
    token = _current.set(states)
    try:
        yield
    finally:
        _current.reset(token)


def current_states() -> StateCache | None:
    """The states of this thread's forward pass; None outside one, and for models without states."""
    return _current.get()


class StateLayout:
    """Which layers of a model keep states.

    Args:
        attends: for each layer, whether it stores keys and values; also true of a layer that stores nothing.
        counts: for each layer, the number of its states of each kind; 0 if it keeps none.
    """

    def __init__(self, attends: Sequence[bool], counts: Sequence[int]) -> None:
        self.attends = tuple(attends)
        self.counts = tuple(counts)

    @classmethod
    def of(cls, config: PretrainedConfig) -> StateLayout | None:
        """The layout of a model by its config; None if no layer keeps states, or transformers makes no cache for it."""
        try:
            layers = list(DynamicCache(config=config).layers)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        counts = [getattr(layer, "number_of_states", 0) for layer in layers]
        attends = [
            not count or isinstance(layer, CacheLayerMixin)
            for layer, count in zip(layers, counts, strict=True)
        ]
        return cls(attends, counts) if any(counts) else None

    def layers(self, tokens: int) -> list[Any]:
        """New layers of a cache."""
        return [
            _layer(tokens, attends=attends, count=count)
            for attends, count in zip(self.attends, self.counts, strict=True)
        ]


def _layer(tokens: int, *, attends: bool, count: int) -> Any:
    if not count:
        return _AttentionLayer(tokens)
    return _MixedLayer(tokens, count) if attends else LinearAttentionLayer(count)


def parsed(name: str) -> tuple[int, str, int]:
    """The layer, kind and number of a state by its name."""
    layer, kind, number = name.split(".")
    return int(layer), kind, int(number)


def copied(states: States) -> States:
    """A copy that later passes do not write to."""
    return {name: state.clone() for name, state in states.items()}


def joined(parts: Sequence[States]) -> States:
    """The states of all rows of ``parts``, one after another, in new tensors; of one without a token, zeros."""
    filled = next((part for part in parts if part), {})
    return {
        name: torch.cat([part[name] if part else torch.zeros_like(like[:1]) for part in parts])
        for name, like in filled.items()
    }


def split(states: States, counts: Sequence[int]) -> list[States]:
    """The inverse of `joined`, for parts of so many rows; views."""
    parts = {name: torch.split(state, list(counts)) for name, state in states.items()}
    return [{name: items[index] for name, items in parts.items()} for index in range(len(counts))]


def selected(states: States, rows: Sequence[int]) -> States:
    """The states of some rows, in new tensors."""
    return {
        name: state.index_select(0, torch.tensor(rows, dtype=torch.long, device=state.device))
        for name, state in states.items()
    }


def nbytes(states: States) -> int:
    """The size in bytes."""
    return sum(state.nbytes for state in states.values())
