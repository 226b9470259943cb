"""Digests by which a model's weights are known again: for kept readings, and for its calibration."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel


def weights_digest(model: PreTrainedModel) -> str:
    """A digest of samples of each weight."""
    samples, digest = [], hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        samples.append(flat[:: max(1, len(flat) // 64)][:64].float().cpu())
    digest.update(torch.cat(samples).numpy().tobytes())
    return digest.hexdigest()


def calibration_digest(model: PreTrainedModel) -> str:
    """A digest of the weights that is the same for every dtype."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(type(model).__name__.encode())
    samples = [weight.detach().flatten()[:8] for _, weight in sorted(model.named_parameters())]
    rounded = torch.cat([sample.float().to("cpu", torch.bfloat16) for sample in samples])
    digest.update(rounded.float().numpy().tobytes())
    return digest.hexdigest()
