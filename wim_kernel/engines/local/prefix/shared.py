"""Cache mode ``"shared"``: one prefix, stored once, for all branches.

Keys and values are in preallocated buffers, one pair per layer, which only `extend` writes. Branches store their own
tokens elsewhere, so there is nothing to roll back and a branch can start from any position at any time. If some layers
keep states in place of keys and values, a branch can start from every chunk boundary, where a copy of them is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.loading_options import KeptDtype
from wim_kernel.engines.local.attention.parts import AttentionParams
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.decode.fair_lock import Account
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.model.states import StateCache, States, copied, joined, nbytes, parsed
from wim_kernel.engines.local.prefix.quantised import parts_of, quantised, restored
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.prefix.transfer import copy_pairs, to_host
from wim_kernel.engines.local.rows.base import BranchRows
from wim_kernel.engines.packed import Packed


class SharedPrefix:
    """A prefix with its keys and values in every layer.

    Attributes:
        layers: keys and values by index of the layer; empty before the first `extend`.
        windows: each layer's attention window; None for a layer without one.
        query_heads: each layer's number of query heads.
        ids: token ids of the prefix.
        account: the prefix's account of the model's time, for prefill.
        capacity: number of tokens for which buffers are allocated.
        states: states of layers that keep any, after the last token. Passes write to copies of them.
        boundaries: by number of tokens, the states at each chunk boundary.
    """

    def __init__(self, runner: ModelRunner, backend: AttentionBackend) -> None:
        self.runner = runner
        self.backend = backend
        self.layers: dict[int, LayerStore] = {}
        self.windows: dict[int, int | None] = {}
        self.query_heads: dict[int, int] = {}
        self.ids: list[int] = []
        self.account = Account()
        self.capacity = 0
        self.states: States = {}
        self.boundaries: dict[int, States] = {0: {}}

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return sum(layer.nbytes for layer in self.layers.values()) // max(1, self.capacity)

    @property
    def bytes_per_boundary(self) -> int:
        """Bytes of the states that are kept at a chunk boundary."""
        return nbytes(self.states)

    @torch.inference_mode()
    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens in all. Rows that read the old buffers keep them alive."""
        if tokens > self.capacity:
            for index, layer in self.layers.items():
                self.layers[index] = layer.resized(self.tokens, tokens)
            self.capacity = tokens

    @torch.inference_mode()
    def fork(self, tokens: int) -> SharedPrefix:
        """A copy of the first ``tokens`` tokens; if layers keep states, they end at a chunk boundary."""
        other = SharedPrefix(self.runner, self.backend)
        if self.runner.state_layout is not None:
            other.states = self.boundaries[tokens]
            other.boundaries = {end: states for end, states in self.boundaries.items() if end <= tokens}
        other.ids, other.capacity, other.windows = self.ids[:tokens], tokens, dict(self.windows)
        other.layers = {index: layer.resized(tokens, tokens) for index, layer in self.layers.items()}
        return other

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens: run them through the model and store their keys and values."""
        start, end = self.tokens, self.tokens + len(ids)
        self.reserve(end)
        positions = torch.arange(start, end)[None]
        layout, states = self.runner.state_layout, None
        if layout is not None:
            states = StateCache(layout, start, copied(self.states))
        self.runner.forward(torch.tensor([ids]), positions, ExtendContext(self, start), 1, states)
        if states is not None:
            self.states = states.states
        self.ids.extend(ids)  # last, so that a forward pass that fails leaves the prefix as it was

    @torch.inference_mode()
    def pack(self, tokens: int, kept: KeptDtype | None = None) -> Packed:
        """Copy the first ``tokens`` tokens to host memory, each layer as in `LayerStore.stored`, or in 8 bits."""
        state: dict[str, Any] = {
            "windows": {str(layer): window for layer, window in self.windows.items()},
            "by_token": self.backend.by_token,
        }
        stored: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for index, layer in self.layers.items():
            if kept is None:
                stored[f"{index}.keys"], stored[f"{index}.values"] = layer.stored(tokens)
            else:  # layer by layer, since the device may be short of memory
                parts = quantised(layer.keys[:, :tokens], layer.values[:, :tokens], str(index))
                tensors |= zip(parts, to_host(list(parts.values())), strict=True)
        if kept is not None:
            state["dtypes"] = {str(index): layer.dtypes for index, layer in self.layers.items()}
        for end, states in self.boundaries.items():
            if end <= tokens:
                stored |= {f"states.{end}.{name}": item for name, item in states.items()}
        tensors |= zip(stored, to_host(list(stored.values())), strict=True)
        return Packed(tensors, state, tokens)

    @torch.inference_mode()
    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> None:
        """Fill this empty prefix with the first tokens, ``ids``, of packed data."""
        self.windows = {int(layer): window for layer, window in packed.state["windows"].items()}
        self.capacity = max(room, len(ids))
        if "dtypes" in packed.state:
            self._unpack_quantised(packed, len(ids))
        else:
            self._unpack_exact(packed, len(ids))
        self.ids = list(ids)
        self._unpack_states(packed)

    def _unpack_exact(self, packed: Packed, count: int) -> None:
        by_token = packed.state["by_token"]
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in self.windows:
            kept = [packed.tensors[f"{index}.{name}"] for name in ("keys", "values")]
            if by_token is not self.backend.by_token:
                kept = [item.transpose(0, 1) for item in kept]
            store = self._empty_store(index, kept)
            self.layers[index] = store
            cut = [item[:count] if store.by_token else item[:, :count] for item in kept]
            pairs += zip(cut, store.stored(count), strict=True)
        copy_pairs(pairs)

    def _unpack_quantised(self, packed: Packed, count: int) -> None:
        """Restore each layer on its device."""
        for index in self.windows:
            device, dtypes = self.runner.device_of(index), packed.state["dtypes"][str(index)]
            parts = parts_of(packed.tensors, str(index))
            moved = {name: torch.empty_like(part, device=device) for name, part in parts.items()}
            copy_pairs([(part, moved[name]) for name, part in parts.items()])
            keys, values = (item[:, :count] for item in restored(moved, str(index), dtypes))
            store = LayerStore(keys, values, self.capacity, by_token=self.backend.by_token)
            store.write(keys, values, 0)
            self.layers[index] = store

    def _unpack_states(self, packed: Packed) -> None:
        for name, state in packed.tensors.items():
            kind, _, rest = name.partition(".")
            end, _, own = rest.partition(".")
            if kind == "states" and int(end) <= self.tokens:
                device, kept = self.runner.device_of(parsed(own)[0]), self.boundaries.get(int(end), {})
                self.boundaries[int(end)] = {**kept, own: state.to(device, copy=True)}
        if self.runner.state_layout is not None:
            self.states = self.boundaries[self.tokens]

    def _empty_store(self, layer: int, stored: Sequence[Tensor]) -> LayerStore:
        """An empty store for keys and values of the sizes and dtypes of ``stored``."""
        device, by_token = self.runner.device_of(layer), self.backend.by_token
        heads = 1 if by_token else 0
        key, value = (item.new_empty(item.shape[heads], 0, item.shape[2], device=device) for item in stored)
        return LayerStore(key, value, self.capacity, by_token=by_token)

    def mark_boundary(self) -> None:
        """Keep the states here. Without any there is nothing to do: branches can start from every position."""
        if self.runner.state_layout is not None:
            self.boundaries[self.tokens] = self.states

    @torch.inference_mode()
    def branch(self, lengths: Sequence[int], room: int) -> BranchRows:
        """Make rows that continue from the first ``lengths[row]`` tokens, with room for ``room`` tokens each."""
        states = None
        if self.runner.state_layout is not None:
            states = joined([self.boundaries[length] for length in lengths])
        return self.backend.rows(self.layers, lengths, room, states)


class ExtendContext:
    """The attention of a pass that extends a prefix.

    Args:
        prefix: the prefix.
        start: number of tokens that it had before.
    """

    def __init__(self, prefix: SharedPrefix, start: int) -> None:
        self.prefix = prefix
        self.start = start
        self._kept: dict[Hashable, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
    ) -> Tensor:
        """See `ForwardContext.attend`. Stores the new keys and values in the prefix.

        Raises:
            UnsupportedModelError: if the backend does not compute this kind of attention.
        """
        prefix, backend = self.prefix, self.prefix.backend
        if layer not in prefix.layers:
            if not backend.supports(params):
                raise UnsupportedModelError(
                    f"Layer {layer} attends in a way that the backend {backend.name!r} does not compute."
                )
            prefix.layers[layer] = LayerStore(key[0], value[0], prefix.capacity, by_token=backend.by_token)
            prefix.windows[layer] = params.window
            prefix.query_heads[layer] = query.shape[1]
        return backend.extend(prefix.layers[layer], query, key, value, self.start, params, self._kept)
