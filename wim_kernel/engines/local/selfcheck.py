"""Checks a model on loading: how its cache can be shared, by comparing branches with plain forward passes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PretrainedConfig

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines.base import Head
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.backends.torch_backend import TorchBackend
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.model.soundness import UnsoundModelError, plain_logits
from wim_kernel.engines.local.prefix.shared import SharedPrefix
from wim_kernel.engines.local.prefix.snapshot import SnapshotPrefix


@dataclass(frozen=True)
class Checked:
    """How a model's cache is used, and what was found out on the way.

    Attributes:
        mode: ``"shared"``, one prefix for all branches, or ``"snapshot"``, the model's own cache.
        backend: what computes attention over a shared prefix.
        bytes_per_token: what each token takes in all layers.
        heads: the model's attention heads, where attention can be seen; none with snapshots.
    """

    mode: str
    backend: AttentionBackend
    bytes_per_token: int
    heads: tuple[Head, ...] = ()


def choose_cache(
    runner: ModelRunner, backend: AttentionBackend, wanted: str | None, *, may_fall_back: bool
) -> Checked:
    """The first way to use a model's cache whose results agree with the model's plain forward pass.

    Args:
        runner: the model.
        backend: computes attention over a shared prefix.
        wanted: ``"shared"`` or ``"snapshot"``; None tries them in this order, with a warning if the first fails.
        may_fall_back: whether plain PyTorch may take the backend's place where its kernels do not run.

    Raises:
        UnsupportedModelError: if none agrees.
        UnsoundModelError: if the model gives no numbers at all.
        ValueError: if there is no such way.
    """
    if wanted not in (None, "shared", "snapshot"):
        raise ValueError(f"cache_mode is 'shared', 'snapshot' or None, not {wanted!r}.")
    name, reasons = type(runner.model).__name__, []
    for mode in ("shared", "snapshot") if wanted is None else (wanted,):
        try:
            checked = _checked(runner, backend, mode, may_fall_back)
        except UnsoundModelError:
            raise
        except Exception as error:  # whatever a model's code raises here, this way does not fit it
            reasons.append(f"{mode}: {error}")
            runner.uninstall()
            continue
        if reasons:
            warnings.warn(
                f"{name} cannot share a prefix between branches ({reasons[0]}); its own cache is used, one branch at a "
                "time, which is exact and slower.",
                stacklevel=4,
            )
        return checked
    raise UnsupportedModelError(
        f"{name} gives other results on branches than in a plain forward pass ({'; '.join(reasons)})."
    )


def _checked(runner: ModelRunner, backend: AttentionBackend, mode: str, may_fall_back: bool) -> Checked:
    """Check a way, the shared one in plain PyTorch if it fails with the kernels."""
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
            f"The kernels do not run for {type(runner.model).__name__} on this device ({error}); plain PyTorch is "
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
    prefix = SharedPrefix(runner, backend) if mode == "shared" else SnapshotPrefix(model)
    prefix.reserve(len(document))
    for start, end in ((0, 7), (7, 13), (13, 24)):
        prefix.extend(document[start:end])
        prefix.mark()
    heads: tuple[Head, ...] = ()
    if isinstance(prefix, SharedPrefix):
        _check_windows(prefix, model.config)
        heads = tuple(
            (layer, head) for layer, count in sorted(prefix.query_heads.items()) for head in range(count)
        )
    batch = prefix.branch(lengths, room=6)
    prompts = batch.prompt(suffixes, 5, torch.tensor([4]))[:, -1]
    steps = batch.step([following] * 3).logits
    tolerance = 1e-3 if plain[0].dtype == torch.float32 else 0.1
    for row, wanted in enumerate(plain):
        found = torch.stack([prompts[row], steps[row]]).float()
        error = float((found - wanted.float()).norm() / wanted.float().norm())
        if not error < tolerance:  # also when not a number
            raise UnsupportedModelError(f"logits differ by {error:.1e}")
    return Checked(mode, backend, max(1, prefix.bytes_per_token), heads)


def _check_windows(prefix: SharedPrefix, config: PretrainedConfig) -> None:
    """A few tokens do not reach past a window, so see that every sliding layer gave its window to the attention.

    Raises:
        UnsupportedModelError: if one did not.
    """
    for index, layer in enumerate(DynamicCache(config=config).layers):
        expected = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
        if prefix.windows.get(index) != expected:
            raise UnsupportedModelError(
                f"layer {index} attends within {expected} positions and does not tell its attention function"
            )
