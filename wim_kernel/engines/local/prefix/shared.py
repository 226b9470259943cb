"""The fast path's prefix: stored once, whatever branches read it.

The document's keys and values lie in buffers allocated ahead, one pair a layer, and are written only by `extend`.
Nothing is rolled back because nothing was appended, so any chunk boundary can be branched from at any time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from wim_kernel.engines.local.attention.parts import Terms
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.decode.fair_lock import Account
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.prefix.transfer import bring, fetch
from wim_kernel.engines.local.rows.base import Batch
from wim_kernel.engines.packed import Packed


class SharedPrefix:
    """Tokens of a reading with their keys and values in every layer."""

    def __init__(self, runner: ModelRunner, backend: AttentionBackend) -> None:
        self.runner = runner
        self.backend = backend
        self.layers: dict[int, LayerStore] = {}
        self.windows: dict[int, int | None] = {}
        self.query_heads: dict[int, int] = {}
        self.ids: list[int] = []
        self.account = Account()  # of the model's time, for reading
        self.capacity = 0

    @property
    def tokens(self) -> int:
        """How many tokens the prefix holds."""
        return len(self.ids)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each token takes in all layers."""
        return sum(layer.nbytes for layer in self.layers.values()) // max(1, self.capacity)

    @torch.inference_mode()
    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens in all. Batches that read the old buffers keep them."""
        if tokens > self.capacity:
            for index, layer in self.layers.items():
                self.layers[index] = layer.resized(self.tokens, tokens)
            self.capacity = tokens

    @torch.inference_mode()
    def fork(self, tokens: int) -> SharedPrefix:
        """A prefix of its own with the first ``tokens`` tokens of this one."""
        other = SharedPrefix(self.runner, self.backend)
        other.ids, other.capacity, other.windows = self.ids[:tokens], tokens, dict(self.windows)
        other.layers = {index: layer.resized(tokens, tokens) for index, layer in self.layers.items()}
        return other

    def extend(self, ids: Sequence[int]) -> None:
        """Run tokens through the model once, behind those already here."""
        start, end = self.tokens, self.tokens + len(ids)
        self.reserve(end)
        positions = torch.arange(start, end)[None]
        self.runner.forward(torch.tensor([ids]), positions, ExtendStep(self, start), keep=1)
        self.ids.extend(ids)  # only now: a forward that failed has left nothing that counts

    @torch.inference_mode()
    def pack(self, tokens: int) -> Packed:
        """The first ``tokens`` tokens in the host's memory, each layer's as it is `LayerStore.stored`."""
        stored = {}
        for index, layer in self.layers.items():
            stored[f"{index}.keys"], stored[f"{index}.values"] = layer.stored(tokens)
        tensors = dict(zip(stored, fetch(list(stored.values())), strict=True))
        windows = {str(layer): window for layer, window in self.windows.items()}
        return Packed(tensors, {"windows": windows, "by_token": self.backend.by_token}, tokens)

    @torch.inference_mode()
    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> None:
        """Become what was packed, up to its first tokens ``ids``."""
        count, by_token = len(ids), packed.state["by_token"]
        self.windows = {int(layer): window for layer, window in packed.state["windows"].items()}
        self.capacity = max(room, count)
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in self.windows:
            kept = [packed.tensors[f"{index}.{name}"] for name in ("keys", "values")]
            if by_token is not self.backend.by_token:
                kept = [item.transpose(0, 1) for item in kept]
            store = self._empty_store(index, kept)
            self.layers[index] = store
            cut = [item[:count] if store.by_token else item[:, :count] for item in kept]
            pairs += zip(cut, store.stored(count), strict=True)
        bring(pairs)
        self.ids = list(ids)

    def _empty_store(self, layer: int, stored: Sequence[Tensor]) -> LayerStore:
        """A layer's store for keys and values of the sizes and types that are stored."""
        device, by_token = self.runner.device_of(layer), self.backend.by_token
        heads = 1 if by_token else 0
        key, value = (item.new_empty(item.shape[heads], 0, item.shape[2], device=device) for item in stored)
        return LayerStore(key, value, self.capacity, by_token=by_token)

    def mark(self) -> None:
        """A chunk ends here; nothing to keep, since any position can be branched from."""

    def branch(self, lengths: Sequence[int], room: int) -> Batch:
        """Rows that continue from the first ``lengths[row]`` tokens, with room for ``room`` tokens each."""
        return self.backend.rows(self.layers, lengths, room)


class ExtendStep:
    """What attention needs while a prefix is extended."""

    def __init__(self, prefix: SharedPrefix, start: int) -> None:
        self.prefix = prefix
        self.start = start
        self._kept: dict[Hashable, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Store this layer's new keys and values, then attend over all there are."""
        prefix, backend = self.prefix, self.prefix.backend
        if layer not in prefix.layers:
            prefix.layers[layer] = LayerStore(key[0], value[0], prefix.capacity, by_token=backend.by_token)
            prefix.windows[layer] = terms.window
            prefix.query_heads[layer] = query.shape[1]
        return backend.extend(prefix.layers[layer], query, key, value, self.start, terms, self._kept)
