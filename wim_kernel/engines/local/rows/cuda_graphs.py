"""The passes of one model that are captured as CUDA graphs, and when they have to be captured anew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wim_kernel.engines.local.model.identity import plain_parts
from wim_kernel.engines.local.model.patching import ForwardPatch
from wim_kernel.engines.local.model.runner import ModelRunner, stream_of
from wim_kernel.engines.local.rows.decode_step import DecodeStep, StepSize
from wim_kernel.engines.local.rows.prompt_pass import MOST_TOKENS, PromptPass, PromptSize

MOST_PROMPTS = 16  # most captured passes over prompts
MOST_STEPS = 32  # most captured decode steps
WAIT = 64  # passes over prompts that run launch by launch after memory was short


class CapturedPasses:
    """The captured passes of one model: decode steps and prompts, by size.

    Args:
        runner: the model.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._steps: OrderedDict[Hashable, DecodeStep] = OrderedDict()  # the one used last at the end
        self._prompts: OrderedDict[Hashable, PromptPass] = OrderedDict()  # the one used last at the end
        self._launched: dict[Hashable, tuple[int, torch.dtype]] = {}
        self._logits: dict[int, Tensor] = {}
        self._waits = 0
        self._tensors: list[Tensor] = []  # the model's parameters and buffers
        self._addresses: list[int] = []
        self._fingerprint: int | None = None
        self._pool: Any = None

    def refresh(self) -> bool:
        """Drop all graphs if the model has changed since their capture: addresses of weights, attributes, hooks.

        Returns:
            Whether it has not changed. To find out takes some milliseconds of the host.
        """
        model = self.runner.model
        tensors = [*model.parameters(), *model.buffers()]
        self._tensors = [part for tensor in tensors for _, part in plain_parts("", tensor)]
        self._addresses = [item.data_ptr() for item in self._tensors]
        now = hash((tuple(self._addresses), *map(_module_state, model.modules())))
        if now == self._fingerprint:
            return True
        self._steps.clear()
        self._prompts.clear()
        self._fingerprint = now
        self._pool = torch.cuda.graph_pool_handle() if self._can_capture() else None
        return False

    def decode_step(self, size: StepSize, layers: Sequence[int], dtype: torch.dtype) -> DecodeStep:
        """The step of a size.

        Args:
            size: number of rows and prefixes.
            layers: indices of the model's layers that attend, ascending.
            dtype: dtype of keys and values.
        """
        key = self._key(size, layers, dtype)
        if key in self._steps:
            self._steps.move_to_end(key)
        else:
            if len(self._steps) == MOST_STEPS:
                self._steps.popitem(last=False)
            if any(item.capture_failed for item in self._steps.values()):
                self._pool = None  # do not try to capture this model again
            self._steps[key] = DecodeStep(self.runner, size, layers, dtype, self._pool)
        return self._steps[key]

    def keeps(self, step: DecodeStep) -> bool:
        """Whether a decode step has not been dropped: what is captured in it is the model as it is."""
        return any(kept is step for kept in self._steps.values())

    def drop(self) -> None:
        """Drop all graphs, and what is known of the model's tensors: it is about to get others."""
        self._steps.clear()
        self.drop_prompts()
        self._waits = 0
        self._tensors, self._addresses, self._fingerprint, self._pool = [], [], None, None

    def launched(self, size: PromptSize, layers: Sequence[int], dtype: torch.dtype, logits: Tensor) -> None:
        """Note that a pass over prompts ran launch by launch, and what logits it gave; see `prompt` for the rest."""
        self._launched[self._key(size, layers, dtype)] = logits.shape[-1], logits.dtype
        self._waits = max(0, self._waits - 1)

    def prompt(self, size: PromptSize, layers: Sequence[int], dtype: torch.dtype) -> PromptPass | None:
        """The pass over prompts of a size, from the second use of the size on; None if it should run uncaptured.

        After the pass was launched, `refresh` tells whether its results count.

        Args:
            size: the size.
            layers: indices of the model's layers that attend, ascending.
            dtype: dtype of keys and values.
        """
        key = self._key(size, layers, dtype)
        if key not in self._launched or size.rows * size.width > MOST_TOKENS:
            return None
        if key in self._prompts:
            self._prompts.move_to_end(key)
            if self._prompts[key].capture_failed or self._has_moved:
                return None
            return self._prompts[key]
        if self._waits or any(item.capture_failed for item in self._prompts.values()):
            return None  # memory is short, or this model's prompts cannot be captured
        if self._fingerprint is None or self._pool is not None:
            self.refresh()
        if self._pool is None and self.runner.device.type == "cuda":
            return None
        if len(self._prompts) == MOST_PROMPTS:
            self._prompts.popitem(last=False)
        logits = self._logits_for(size, *self._launched[key])
        self._prompts[key] = PromptPass(self.runner, size, layers, dtype, logits, self._pool)
        return self._prompts[key]

    def drop_prompts(self) -> None:
        """Free the passes over prompts, and capture none for the next `WAIT` passes: memory is short."""
        self._waits = WAIT
        self._prompts.clear()
        self._launched.clear()
        self._logits.clear()

    @property
    def _has_moved(self) -> bool:
        """Whether weights have moved: a replay would read the memory that they have left."""
        return self._addresses != [item.data_ptr() for item in self._tensors]

    def _key(self, size: PromptSize | StepSize, layers: Sequence[int], dtype: torch.dtype) -> Hashable:
        device = self.runner.device
        autocast = torch.is_autocast_enabled() and torch.get_autocast_dtype(device.type)
        return size, dtype, autocast, stream_of(device), *layers

    def _logits_for(self, size: PromptSize, vocabulary: int, dtype: torch.dtype) -> Tensor:
        """A part of a buffer for the logits of all passes over prompts on a stream, where one runs at a time."""
        count, stream = size.rows * size.kept * vocabulary, stream_of(self.runner.device)
        buffer = self._logits.get(stream)
        if buffer is None or len(buffer) < count or buffer.dtype != dtype:
            buffer = self._logits[stream] = torch.empty(count, dtype=dtype, device=self.runner.device)
        return buffer[:count].view(size.rows, size.kept, vocabulary)

    def _can_capture(self) -> bool:
        """Whether the model is on one CUDA device and has no hooks or foreign forwards, which a replay would skip."""
        model = self.runner.model
        devices = {parameter.device for parameter in model.parameters()}
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks or _foreign_forward(module) is not None
            for module in model.modules()
        )
        return devices == {self.runner.device} and self.runner.device.type == "cuda" and not hooked


_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""Attributes in which torch keeps a module's parameters, hooks and so on, which are looked at by themselves."""


def _module_state(module: nn.Module) -> Hashable:
    """The state of a module on which its code may branch: plain attributes, hooks, a forward of its own."""
    own = ((name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)
    plain = tuple((name, _plain_value(value)) for name, value in own)
    return plain, len(module._forward_hooks), len(module._forward_pre_hooks), _foreign_forward(module)


def _plain_value(value: Any) -> Hashable:
    """A value as hashable plain data; None if it is something else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain_value, value))
    if isinstance(value, dict):
        return tuple((str(key), _plain_value(item)) for key, item in value.items())
    return None


def _foreign_forward(module: nn.Module) -> int | None:
    """The id of a forward that other code has put on a module, if any: a replay might skip what it does."""
    own = vars(module).get("forward")
    patch = getattr(getattr(own, "func", None), "__self__", None) if isinstance(own, partial) else None
    return None if own is None or isinstance(patch, ForwardPatch) else id(own)
