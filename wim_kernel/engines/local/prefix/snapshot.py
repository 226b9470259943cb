"""Cache mode ``"snapshot"``: the model's own cache, one branch at a time, if its attention cannot be replaced.

A branch starts from the model's cache as it was at a chunk boundary. Of a layer that keeps every position, the branch
takes a slice, which is copied when the branch appends its first token, so few branches run at a time. A layer that
forgets (sliding windows, convolutions, recurrent states) is small and is copied at each boundary.
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

from wim_kernel.engines.loading_options import KeptDtype
from wim_kernel.engines.local.decode.fair_lock import Account
from wim_kernel.engines.local.model.calling import forward_of, input_device
from wim_kernel.engines.local.prefix.packing import flatten_state, restore_state
from wim_kernel.engines.local.rows.base import StepOutput
from wim_kernel.engines.packed import Packed


class SnapshotPrefix:
    """A prefix in the model's own cache, with a snapshot at every chunk boundary of the layers that cannot be sliced.

    Attributes:
        ids: token ids of the prefix.
        account: the prefix's account of the model's time, for prefill.
        cache: the model's cache after the last token.
        snapshots: by number of tokens, the layers as they were at a boundary; None for a layer that can be sliced.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.ids: list[int] = []
        self.account = Account()
        self.cache = DynamicCache(config=model.config)
        self.snapshots: dict[int, list[Any]] = {0: [None] * len(self.cache.layers)}

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token in the layers that keep every position; the others do not grow."""
        return sum(_nbytes(layer) for layer in self.cache.layers if _sliceable(layer)) // max(1, self.tokens)

    @property
    def bytes_per_boundary(self) -> int:
        """Bytes of a snapshot."""
        return sum(_nbytes(layer) for layer in self.cache.layers if not _sliceable(layer))

    def reserve(self, tokens: int) -> None:
        """Do nothing: the model's cache allocates memory as it grows."""

    def fork(self, tokens: int) -> SnapshotPrefix:
        """A copy of the first ``tokens`` tokens, which end at a chunk boundary."""
        other = SnapshotPrefix(self.model)
        other.ids = self.ids[:tokens]
        other.cache = self.at(tokens)
        other.snapshots = {end: layers for end, layers in self.snapshots.items() if end <= tokens}
        return other

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens: run them through the model."""
        try:
            forward_cached(self.model, torch.tensor([ids]), self.tokens, self.cache, keep=1)
        except BaseException:  # only some layers may have the tokens: return to the last boundary
            last = max(self.snapshots)
            self.cache, self.ids = self.at(last), self.ids[:last]
            raise
        self.ids.extend(ids)

    def mark_boundary(self) -> None:
        """Take a snapshot for branches that start here."""
        self.snapshots[self.tokens] = [
            None if _sliceable(layer) else copy.deepcopy(layer) for layer in self.cache.layers
        ]

    def at(self, tokens: int) -> DynamicCache:
        """A cache as it was at a chunk boundary; appending to it leaves the prefix unchanged."""
        cache = DynamicCache(config=self.model.config)
        if tokens:
            cache.layers = [
                _sliced(layer, tokens) if kept is None else copy.deepcopy(kept)
                for layer, kept in zip(self.cache.layers, self.snapshots[tokens], strict=True)
            ]
        return cache

    def pack(self, tokens: int, kept: KeptDtype | None = None) -> Packed:
        """Copy the first ``tokens`` tokens, which end at a boundary, and the snapshots among them to host memory.

        ``kept`` is None: what a layer of the model's own cache holds is not known.
        """
        tensors: dict[str, Tensor] = {}
        snapshots = {str(end): kept for end, kept in self.snapshots.items() if end <= tokens}
        plain = {
            name: [
                None if layer is None else flatten_state(vars(layer), f"{name}.{index}", tensors)
                for index, layer in enumerate(kept)
            ]
            for name, kept in {"now": self.at(tokens).layers, **snapshots}.items()
        }
        return Packed(tensors, {"layers": plain}, tokens)

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> None:
        """Fill this empty prefix with the first tokens, ``ids``, of packed data; they end at a boundary."""
        device = input_device(self.model)
        layers: dict[str, list[Any]] = {
            name: [
                None if plain is None else _filled(layer, restore_state(plain, packed.tensors, device))
                for layer, plain in zip(self._fresh_layers(), kept, strict=True)
            ]
            for name, kept in packed.state["layers"].items()
        }
        self.cache.layers = layers.pop("now")
        self.ids = list(ids)
        self.snapshots = {int(end): kept for end, kept in layers.items() if int(end) <= len(ids)}
        if len(ids) < packed.tokens:
            self.cache = self.at(len(ids))

    def _fresh_layers(self) -> list[Any]:
        return list(DynamicCache(config=self.model.config).layers)

    def branch(self, lengths: Sequence[int], room: int) -> SnapshotRows:
        """Make rows that continue from the first ``lengths[row]`` tokens, each of which ends at a boundary."""
        return SnapshotRows(self, list(lengths))


class SnapshotRows:
    """Branches that run one after another, each on a cache of its own."""

    def __init__(self, prefix: SnapshotPrefix, lengths: list[int]) -> None:
        self.prefix = prefix
        self.caches = [prefix.at(length) for length in lengths]
        self.positions = list(lengths)

    sees_attention = False

    def prompt(
        self, ids: Sequence[Sequence[int]], width: int, keep: Tensor, start: int = 0, probe: object = None
    ) -> Tensor:
        """See `BranchRows.prompt`. The rows are not padded; ``keep`` counts slots as if they were."""
        logits = []
        for row, prompt in enumerate(ids, start):
            slots = (keep - (width - len(prompt))).clamp(min=0)
            everything = self._run(row, list(prompt), keep=len(prompt))
            logits.append(everything[:, slots.to(everything.device)])
        return torch.cat(logits)

    def step(self, tokens: list[int], *, ahead: bool = False) -> StepOutput:
        """See `BranchRows.step`."""
        return StepOutput.of(
            torch.cat([self._run(row, [token], keep=1)[:, -1] for row, token in enumerate(tokens)])
        )

    batch_key = None  # each row needs a pass of its own

    def step_together(
        self, steps: Sequence[tuple[SnapshotRows, list[int]]], *, ahead: bool = False
    ) -> list[StepOutput]:
        """Never called, since `batch_key` is None."""
        raise NotImplementedError

    def advance(self) -> None:
        """Never called, since `batch_key` is None."""

    def select(self, rows: list[int]) -> None:
        """Keep only ``rows``, ascending."""
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
    """The model's plain forward pass on its own cache; returns logits (1, keep, vocabulary) of the last tokens."""
    device = input_device(model)
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"use_cache": True}
    arguments["cache_params" if "cache_params" in accepted else "past_key_values"] = cache
    if "position_ids" in accepted:
        arguments["position_ids"] = torch.arange(start, start + ids.shape[1], device=device)[None]
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    logits: Tensor = forward_of(model)(input_ids=ids.to(device), **arguments).logits
    return logits[:, -keep:]


def _sliceable(layer: Any) -> bool:
    return type(layer) is DynamicLayer


def _sliced(layer: Any, tokens: int) -> DynamicLayer:
    """The first positions of a layer that keeps them all. Appending concatenates, so the original is unchanged."""
    part: DynamicLayer = type(layer)()
    if layer.is_initialized:
        part.lazy_initialization(layer.keys, layer.values)
        part.keys, part.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
    return part


def _filled(layer: Any, state: dict[str, Any]) -> Any:
    """A fresh layer with the state of another layer of its class."""
    vars(layer).update(state)
    return layer


def _nbytes(layer: Any) -> int:
    values = list(vars(layer).values())
    values += [item for value in values if isinstance(value, dict) for item in value.values()]
    return sum(item.nbytes for item in values if isinstance(item, Tensor))
