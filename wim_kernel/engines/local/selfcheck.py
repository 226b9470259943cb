"""Checks on loading how a model's cache can be used, by comparing branches with plain forward passes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.base import Head
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.backends.torch_backend import TorchBackend
from wim_kernel.engines.local.model.calling import forward_of
from wim_kernel.engines.local.model.identity import is_full_precision
from wim_kernel.engines.local.model.inspection import Inspection
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.model.soundness import (
    UnsoundModelError,
    explain_difference,
    plain_logits,
)
from wim_kernel.engines.local.prefix.shared import SharedPrefix
from wim_kernel.engines.local.prefix.snapshot import SnapshotPrefix
from wim_kernel.text.run_text import Text


@dataclass(frozen=True)
class Checked:
    """The way to use a model's cache that passed the check.

    Attributes:
        mode: ``"shared"``, one prefix for all branches, or ``"snapshot"``, copies of the model's own cache.
        backend: computes attention over a shared prefix.
        bytes_per_token: bytes of a token's keys and values in all layers.
        bytes_per_boundary: bytes of the states that are kept at a chunk boundary.
        heads: the model's attention heads, if their attention can be measured; empty with snapshots.
    """

    mode: str
    backend: AttentionBackend
    bytes_per_token: int
    bytes_per_boundary: int = 0
    heads: tuple[Head, ...] = ()


def choose_cache(
    runner: ModelRunner, backend: AttentionBackend, wanted: str | None, *, may_fall_back: bool
) -> Checked:
    """The first cache mode with which branches agree with the model's plain forward pass.

    Args:
        runner: the model.
        backend: computes attention over a shared prefix.
        wanted: ``"shared"`` or ``"snapshot"``; None tries them in this order, with a warning if the first fails.
        may_fall_back: whether plain PyTorch may replace a backend whose kernels do not run.

    Raises:
        UnsupportedModelError: if no mode agrees.
        UnsoundModelError: if the plain forward pass itself fails, or gives NaN or infinity.
        ValueError: if there is no mode of this name.
    """
    if wanted not in (None, "shared", "snapshot"):
        raise ValueError(f"cache_mode is 'shared', 'snapshot' or None, not {wanted!r}.")
    name, reasons = type(runner.model).__name__, []
    for mode in ("shared", "snapshot") if wanted is None else (wanted,):
        try:
            checked = _checked(runner, backend, mode, may_fall_back)
        except UnsoundModelError:
            raise
        except Exception as error:  # a model's code may raise anything
            reasons.append(_reason(error, mode))
            runner.uninstall()
            continue
        if reasons:
            warnings.warn(
                f"{name} cannot share a prefix between branches: {reasons[0]}. Its own cache is used, one branch at a "
                "time, which is exact and slower.",
                stacklevel=4,
            )
        return checked
    raise UnsupportedModelError(
        f"{name} gives other results on branches than in a plain forward pass: {_cause(runner) or '; '.join(reasons)}."
    )


def _cause(runner: ModelRunner) -> str:
    """What about the model's own code makes the difference, if that can be seen."""
    try:
        with torch.inference_mode():
            return explain_difference(runner.model, range(3, 13), runner.device)
    except Exception:  # a model's code may raise anything
        return ""


def _reason(error: Exception, mode: str) -> str:
    """Why a mode fails: our own words, or which part of the model's code has failed."""
    if isinstance(error, UnsupportedModelError):
        return str(error).rstrip(".")
    what = (
        "the model's own code needs a mask or a cache that a shared prefix does not have"
        if mode == "shared"
        else "the model's own code does not continue from transformers' usual cache"
    )
    return f"{what} ({type(error).__name__}: {str(error).rstrip('.')})"


def _checked(runner: ModelRunner, backend: AttentionBackend, mode: str, may_fall_back: bool) -> Checked:
    """Check one mode; if ``"shared"`` fails with the kernels, check it in plain PyTorch."""
    try:
        with torch.inference_mode():
            return _compare(runner, backend, mode)
    except UnsoundModelError:
        raise
    except Exception as error:  # no compiler, too little shared memory, a driver too old, ...
        if mode != "shared" or isinstance(backend, TorchBackend) or not may_fall_back:
            raise
        runner.unfuse()
        with torch.inference_mode():
            checked = _compare(runner, TorchBackend(runner), mode)
        warnings.warn(
            f"The kernels do not run for {type(runner.model).__name__} here ({error}); plain PyTorch is "
            "used, which is exact and slower.",
            stacklevel=5,
        )
        return checked


def _compare(runner: ModelRunner, backend: AttentionBackend, mode: str) -> Checked:
    """Compare branches at every boundary of a few tokens with plain forward passes.

    Raises:
        UnsupportedModelError: if they differ.
    """
    model = runner.model
    vocabulary: int = next(model.get_input_embeddings().parameters()).shape[0]
    ids = [(13 + 7919 * index) % min(vocabulary, 40_000) for index in range(34)]
    document, suffixes, following = ids[:24], [ids[24:29], ids[29:32], ids[32:34]], 17
    lengths = [24, 13, 0]
    runner.uninstall()
    texts = [
        [*document[:length], *suffix, following] for length, suffix in zip(lengths, suffixes, strict=True)
    ]
    plain = plain_logits(model, texts, runner.device)
    if mode == "shared":
        _check_layers(model.config)
        runner.forward(torch.tensor([document]), torch.arange(len(document))[None], Inspection(), 1)
    prefix = SharedPrefix(runner, backend) if mode == "shared" else SnapshotPrefix(model)
    prefix.reserve(len(document))
    for start, end in ((0, 13), (13, 24)):
        prefix.extend(document[start:end])
        prefix.mark_boundary()
    heads: tuple[Head, ...] = ()
    if isinstance(prefix, SharedPrefix):
        _check_windows(prefix, model.config)
        heads = tuple(
            (layer, head) for layer, count in sorted(prefix.query_heads.items()) for head in range(count)
        )
    batch = prefix.branch(lengths, room=6)
    prompts = batch.prompt(suffixes, 5, torch.tensor([4]))[:, -1]
    steps = batch.step([following] * 3).logits
    errors = [
        float((torch.stack([prompts[row], steps[row]]) - wanted).float().norm() / wanted.float().norm())
        for row, wanted in enumerate(plain)
    ]
    tolerance = 1e-3 if is_full_precision(model) else 0.1
    for error in errors:
        if not error < tolerance:  # also when not a number
            where = "behind a shared prefix" if mode == "shared" else "behind the model's own cache"
            raise UnsupportedModelError(
                f"{where}, its logits differ by {error:.1e} from those of a plain forward pass"
            )
    return Checked(mode, backend, max(1, prefix.bytes_per_token), prefix.bytes_per_boundary, heads)


def _check_layers(config: PretrainedConfig) -> None:
    """Check that no layer keeps more about each token than keys and values.

    Raises:
        UnsupportedModelError: if a layer does.
    """
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if hasattr(layer, "update_indexer"):
            raise UnsupportedModelError(
                f"layer {index} attends to a selection of tokens, for which it keeps further keys of all tokens"
            )


def _check_windows(prefix: SharedPrefix, config: PretrainedConfig) -> None:
    """Check that every sliding layer has passed its window on; the few tokens of the check would not reveal it.

    Raises:
        UnsupportedModelError: if a layer has not.
    """
    for index, layer in enumerate(DynamicCache(config=config).layers):
        expected = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
        if expected is not None and prefix.windows.get(index) != expected:
            raise UnsupportedModelError(
                f"layer {index} attends within {expected} positions and does not pass this window on"
            )


@torch.inference_mode()
def reads_text(model: PreTrainedModel, codec: ChatCodec, device: torch.device) -> bool:
    """Whether a model predicts English better than chance. Heads of random weights are not worth probing."""
    text = "The ship left the harbour in the morning, and nobody on the quay saw it go."
    ids = codec.encode(Text(text))
    if len(ids) < 2:
        return False
    logits = forward_of(model)(torch.tensor([ids], device=device), use_cache=False).logits[0].float()
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:], device=logits.device))
    return bool(loss < 0.7 * math.log(logits.shape[-1]))
