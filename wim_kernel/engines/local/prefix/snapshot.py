"""The slower exact path, for models whose attention cannot be lent: the model's own cache, one branch at a time.

A branch starts from the model's cache as it was at a chunk boundary. Of layers that keep every position it takes the
first ones (they are copied when the branch appends its first token, so few branches run together here); layers that
forget (sliding windows, convolutions, recurrent states) are copied at each boundary, where they are small.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from wim_kernel.engines.local.decode.fair_lock import Account
from wim_kernel.engines.local.prefix.packing import put_together, take_apart
from wim_kernel.engines.local.rows.base import Next
from wim_kernel.engines.packed import Packed


class SnapshotPrefix:
    """Tokens of a reading in the model's own cache, with what cannot be sliced kept at every chunk boundary."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.ids: list[int] = []
        self.account = Account()  # of the model's time, for reading
        self.cache = DynamicCache(config=model.config)
        self.snapshots: dict[int, list[Any]] = {0: [None] * len(self.cache.layers)}

    @property
    def tokens(self) -> int:
        """How many tokens the prefix holds."""
        return len(self.ids)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each token takes in layers that keep every position; others do not grow with the document."""
        return sum(_nbytes(layer) for layer in self.cache.layers if _sliceable(layer)) // max(1, self.tokens)

    def reserve(self, tokens: int) -> None:
        """Nothing to do: the model's cache grows as it will."""

    def fork(self, tokens: int) -> SnapshotPrefix:
        """A prefix of its own with the first ``tokens`` tokens, a chunk boundary, of this one."""
        other = SnapshotPrefix(self.model)
        other.ids = self.ids[:tokens]
        other.cache = self.at(tokens)
        other.snapshots = {end: layers for end, layers in self.snapshots.items() if end <= tokens}
        return other

    def extend(self, ids: Sequence[int]) -> None:
        """Run tokens through the model once, behind those already here."""
        try:
            forward_cached(self.model, torch.tensor([ids]), self.tokens, self.cache, keep=1)
        except BaseException:  # some layers have the tokens and some have not: go back to the last boundary
            last = max(self.snapshots)
            self.cache, self.ids = self.at(last), self.ids[:last]
            raise
        self.ids.extend(ids)

    def mark(self) -> None:
        """A chunk ends here: keep what a later branch could not recover."""
        self.snapshots[self.tokens] = [
            None if _sliceable(layer) else copy.deepcopy(layer) for layer in self.cache.layers
        ]

    def at(self, tokens: int) -> DynamicCache:
        """The cache as it was at a chunk boundary, free to be appended to."""
        cache = DynamicCache(config=self.model.config)
        if tokens:
            cache.layers = [
                _sliced(layer, tokens) if kept is None else copy.deepcopy(kept)
                for layer, kept in zip(self.cache.layers, self.snapshots[tokens], strict=True)
            ]
        return cache

    def pack(self, tokens: int) -> Packed:
        """The first ``tokens`` tokens, a chunk boundary, in the host's memory, with the snapshots up to there."""
        tensors: dict[str, Tensor] = {}
        places = {str(end): kept for end, kept in self.snapshots.items() if end <= tokens}
        plain = {
            place: [
                None if layer is None else take_apart(vars(layer), f"{place}.{index}", tensors)
                for index, layer in enumerate(kept)
            ]
            for place, kept in {"now": self.at(tokens).layers, **places}.items()
        }
        return Packed(tensors, {"layers": plain}, tokens)

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> None:
        """Become what was packed, up to its first tokens ``ids``, which end at a boundary."""
        device = next(self.model.parameters()).device
        layers: dict[str, list[Any]] = {
            place: [
                None if plain is None else _filled(layer, put_together(plain, packed.tensors, device))
                for layer, plain in zip(self._fresh_layers(), kept, strict=True)
            ]
            for place, kept in packed.state["layers"].items()
        }
        self.cache.layers = layers.pop("now")
        self.ids = list(ids)
        self.snapshots = {int(end): kept for end, kept in layers.items() if int(end) <= len(ids)}
        if len(ids) < packed.tokens:
            self.cache = self.at(len(ids))

    def _fresh_layers(self) -> list[Any]:
        return list(DynamicCache(config=self.model.config).layers)

    def branch(self, lengths: Sequence[int], room: int) -> SnapshotBatch:
        """Rows that continue from the first ``lengths[row]`` tokens."""
        return SnapshotBatch(self, list(lengths))


class SnapshotBatch:
    """Branches that take turns, each with a cache of its own."""

    def __init__(self, prefix: SnapshotPrefix, lengths: list[int]) -> None:
        self.prefix = prefix
        self.caches = [prefix.at(length) for length in lengths]
        self.positions = list(lengths)

    sees_attention = False

    def prompt(
        self, ids: Sequence[Sequence[int]], width: int, keep: Tensor, start: int = 0, probe: object = None
    ) -> Tensor:
        """Run the prompts of rows ``start`` on; logits at slots ``keep`` of left-padded rows: (rows, keep, vocab)."""
        logits = []
        for row, prompt in enumerate(ids, start):
            slots = (keep - (width - len(prompt))).clamp(min=0)
            everything = self._run(row, list(prompt), keep=len(prompt))
            logits.append(everything[:, slots.to(everything.device)])
        return torch.cat(logits)

    def step(self, tokens: list[int], *, ahead: bool = False) -> Next:
        """Append one token to every row; what may come next."""
        return Next.of(
            torch.cat([self._run(row, [token], keep=1)[:, -1] for row, token in enumerate(tokens)])
        )

    batch_key = None  # each row has a pass of its own anyway

    def step_together(self, steps: Sequence[tuple[SnapshotBatch, list[int]]]) -> list[Next]:
        """Never asked for, without company."""
        raise NotImplementedError

    def advance(self) -> None:
        """Never asked for, without company."""

    def select(self, rows: list[int]) -> None:
        """Let all but ``rows`` leave the batch."""
        self.caches = [self.caches[row] for row in rows]
        self.positions = [self.positions[row] for row in rows]

    def _run(self, row: int, ids: list[int], keep: int) -> Tensor:
        logits = forward_cached(
            self.prefix.model, torch.tensor([ids]), self.positions[row], self.caches[row], keep
        )
        self.positions[row] += len(ids)
        return logits


@torch.inference_mode()
def forward_cached(model: PreTrainedModel, ids: Tensor, start: int, cache: DynamicCache, keep: int) -> Tensor:
    """The model's plain forward over its own cache; logits (1, keep, vocabulary)."""
    device = next(model.get_input_embeddings().parameters()).device
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"use_cache": True}
    arguments["cache_params" if "cache_params" in accepted else "past_key_values"] = cache
    if "position_ids" in accepted:
        arguments["position_ids"] = torch.arange(start, start + ids.shape[1], device=device)[None]
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    logits: Tensor = model(input_ids=ids.to(device), **arguments).logits
    return logits[:, -keep:]


def _sliceable(layer: Any) -> bool:
    return type(layer) is DynamicLayer


def _sliced(layer: Any, tokens: int) -> DynamicLayer:
    """The first positions of a layer that keeps them all. Appending concatenates, so the original stays as it is."""
    part: DynamicLayer = type(layer)()
    if layer.is_initialized:
        part.lazy_initialization(layer.keys, layer.values)
        part.keys, part.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
    return part


def _filled(layer: Any, state: dict[str, Any]) -> Any:
    """A fresh layer with the state of another of its kind."""
    vars(layer).update(state)
    return layer


def _nbytes(layer: Any) -> int:
    return sum(item.nbytes for item in vars(layer).values() if isinstance(item, Tensor))
