"""The text part of a multimodal model: the language model alone, without towers for images, video or sound."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from wim_kernel.common.errors import UnsupportedModelError


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint is multimodal, and transformers does not load its text part by itself."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or config.get_text_config() is config:
        return False
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] is MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def text_part(whole: PreTrainedModel) -> PreTrainedModel:
    """The language model of a multimodal one, with the same weights. The rest is freed once ``whole`` is.

    If transformers has no class for the language model alone, it is ``whole`` without the other parts.

    Raises:
        UnsupportedModelError: if the language model reads what an encoder has made of the text.
    """
    config = whole.config.get_text_config(decoder=True)
    if whole.config.is_encoder_decoder or config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(whole).__name__} has an encoder, so it is no causal language model."
        )
    body: PreTrainedModel = whole.get_decoder()  # type: ignore[no-untyped-call]
    alone = _alone(whole, body, config) if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None
    if alone is None:
        _drop_towers(whole, body)
        return whole
    return alone


def _alone(whole: PreTrainedModel, body: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel | None:
    """A causal language model around ``body``; None if its class has another one."""
    with torch.device("meta"):
        alone: Any = AutoModelForCausalLM.from_config(config, dtype=whole.dtype)  # type: ignore[no-untyped-call]
    if type(alone.base_model) is not type(body):
        return None
    setattr(alone, alone.base_model_prefix, body)
    head: Any = whole.get_output_embeddings()  # type: ignore[no-untyped-call]
    alone.set_output_embeddings(head)
    if any(weight.device.type == "meta" for weight in alone.parameters()) and not hasattr(
        whole, "hf_device_map"
    ):
        return None
    alone.config = body.config
    alone.config.name_or_path = whole.config.name_or_path
    alone.generation_config = whole.generation_config
    for name in ("hf_device_map", "hf_quantizer", "quantization_method"):
        if hasattr(whole, name):
            setattr(alone, name, getattr(whole, name))
    made: PreTrainedModel = alone
    return made


def _drop_towers(whole: PreTrainedModel, body: PreTrainedModel) -> None:
    """Remove the modules beside ``body`` and whatever holds it."""
    head: Any = whole.get_output_embeddings()  # type: ignore[no-untyped-call]
    for holder in list(whole.modules()):
        children = dict(holder.named_children())
        if body in children.values():
            for name, child in children.items():
                if child is not body and child is not head:
                    setattr(holder, name, None)
