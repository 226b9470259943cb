"""Selective scans behind a prefix, for recurrent layers whose own code scans several tokens from zeros.

transformers' ``mamba_selective_scan`` takes no state to start from, and neither do the kernels that it may call: the
layers' own code continues from a state only when it runs a single token. A scan is linear in its state, so this patch
lets the function run, and adds what the state contributes to each output and to the last state.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wim_kernel.common import forks
from wim_kernel.engines.local.model.states import current_states

SCAN = "mamba_selective_scan"


class Scans:
    """Patches the scan functions in the code of a model's layers.

    Args:
        model: a causal LM.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._patched: list[ModuleType] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "_patched": None}

    def install(self) -> None:
        """Patch the functions; does nothing if they are patched."""
        if self._patched is not None:
            return
        self._patched = []
        names = {type(module).__module__ for module in self.model.modules()}
        with _lock:
            for file in (sys.modules[name] for name in sorted(names)):
                scan = getattr(file, SCAN, None)
                if scan is not None:
                    scan = scan if isinstance(scan, _ScanFromState) else _ScanFromState(scan)
                    scan.users += 1
                    setattr(file, SCAN, scan)
                    self._patched.append(file)

    def uninstall(self) -> None:
        """Restore the functions, unless another model uses them."""
        with _lock:
            for file in self._patched or ():
                scan = cast(_ScanFromState, getattr(file, SCAN))
                scan.users -= 1
                if scan.users == 0:
                    setattr(file, SCAN, scan.original)
        self._patched = None


def _renew_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


_lock = threading.Lock()
forks.in_child(_renew_after_fork)


class _ScanFromState:
    """A scan function that starts from the state that the layer has fetched, in forward passes of the kernel.

    Attributes:
        original: the model's own function.
        users: number of models that have installed the patch.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.users = 0

    def __call__(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Scan; see the original.

        Args:
            hidden_states: the inputs, (rows, width, tokens).
            dt: the step sizes, (rows, width, tokens).
            A: the decay rates, (width, size).
            B: (rows, size, tokens).
            C: (rows, size, tokens).
            z: gates of the outputs, (rows, width, tokens).
            delta_bias: added to the step sizes, (width,).
            delta_softplus: whether softplus makes the step sizes positive.
            return_last_state: whether to return the last state too.
            kwargs: further arguments of the original.

        Returns:
            Outputs (rows, width, tokens), and the last state (rows, width, size).
        """
        own = {
            "z": z,
            "delta_bias": delta_bias,
            "delta_softplus": delta_softplus,
            "return_last_state": return_last_state,
        }
        found = self.original(hidden_states, dt, A, B, C, **own, **kwargs)
        states = current_states()
        state = None if states is None else states.next_scanned()
        if state is None:
            return found
        if delta_bias is not None:
            dt = dt + delta_bias.to(dt.dtype)[..., None]
        if delta_softplus:
            dt = torch.nn.functional.softplus(dt)
        carried = _decayed(state, dt, A)
        added = torch.einsum("rwts,rst->rwt", carried, C.float())
        added = added if z is None else added * torch.nn.functional.silu(z.float())
        if not return_last_state:
            return found + added.to(found.dtype)
        outputs, last = found
        return outputs + added.to(outputs.dtype), last + carried[:, :, -1].to(last.dtype)


def _decayed(state: Tensor, steps: Tensor, rates: Tensor) -> Tensor:
    """What is left of a state (rows, width, size) behind each token, (rows, width, tokens, size)."""
    elapsed = steps.float().cumsum(-1)
    return state.float()[:, :, None] * torch.exp(rates.float()[:, None] * elapsed[..., None])
