"""The backend in plain PyTorch: for every device, and for every model that uses transformers' attention interface."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from wim_kernel.engines.local.attention.parts import AttentionParams, extend_attention
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.model.states import States
from wim_kernel.engines.local.prefix.store import LayerStore
from wim_kernel.engines.local.rows.torch_rows import TorchRows


class TorchBackend:
    """See `wim_kernel.engines.local.backends.base.AttentionBackend`.

    Args:
        runner: the model.
    """

    name = "parts"
    by_token = False

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner

    def supports(self, params: AttentionParams) -> bool:
        """True: every mask comes from `AttentionParams.visible`."""
        return True

    def extend(
        self,
        store: LayerStore,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        params: AttentionParams,
        kept: dict[Hashable, Tensor],
    ) -> Tensor:
        """See `AttentionBackend.extend`."""
        store.write(key[0], value[0], start)
        end = start + key.shape[2]
        return extend_attention(query, store.keys[:, :end], store.values[:, :end], start, params)

    def forget(self) -> None:
        """See `AttentionBackend.forget`: nothing is kept."""

    def rows(
        self,
        layers: Mapping[int, LayerStore],
        lengths: Sequence[int],
        room: int,
        states: States | None = None,
    ) -> TorchRows:
        """See `AttentionBackend.rows`."""
        return TorchRows(layers, self.runner, list(lengths), room, states)
