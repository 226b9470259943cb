"""Weights as people have them: quantised, with adapters, compiled, offloaded; each made on the spot of a tiny llama."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_configs import VOCABULARY
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)

from wim_kernel.engines.loading import load_model


@dataclass(frozen=True)
class Weights:
    """One kind of weights.

    Attributes:
        name: what it is.
        package: the package that it needs; empty for none.
        how: how a user loads it.
        make: makes the model out of a checkpoint's folder.
        note: what else to know.
    """

    name: str
    package: str
    how: str
    make: Callable[[Path], Any]
    note: str = ""

    @property
    def here(self) -> bool:
        """Whether the package is installed."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def save_base(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save a tiny llama, whose sizes suit all ways to quantise it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.15,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The model in a folder, in float32 on the CPU."""
    device = {} if "device_map" in options else {"device": "cpu"}
    return load_model(folder, dtype="float32", **device, **options)[0]


def _torchao(name: str, **arguments: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from torchao import quantization

        return load(folder, quantization_config=TorchAoConfig(getattr(quantization, name)(**arguments)))

    return make


def _torchao_int4(folder: Path) -> Any:
    from torchao.quantization.granularity import PerGroup

    make = _torchao(
        "Int8DynamicActivationIntxWeightConfig",
        weight_dtype=torch.int4,
        weight_granularity=PerGroup(32),
    )
    return make(folder)


def _saved_torchao(folder: Path) -> Any:
    saved = folder / "torchao"
    _torchao("Int8WeightOnlyConfig")(folder).save_pretrained(saved)
    return load(saved_with_tokenizer(folder, saved))


def saved_with_tokenizer(folder: Path, saved: Path) -> Path:
    """The folder of another model, with the base model's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).write_bytes((folder / name).read_bytes())
    return saved


def _in_8_bits(folder: Path) -> Any:
    return load(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def _in_4_bits(folder: Path) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return load(folder, quantization_config=config)


def with_lora(folder: Path) -> Any:
    """The model with random LoRA adapters around some of its layers."""
    import peft

    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(load(folder), config).eval()


def saved_lora(folder: Path) -> Path:
    """A folder with adapters alone, which names the base model."""
    with_lora(folder).save_pretrained(folder / "lora")
    return folder / "lora"


def _loaded_lora(folder: Path) -> Any:
    model = load(folder)
    model.load_adapter(str(saved_lora(folder)))
    return model.eval()


def compressed(scheme: str, folder: Path) -> Path:
    """A checkpoint in the format of compressed-tensors, its weights rounded to the nearest."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    model, saved = load(folder), folder / scheme
    groups = {"all": preset_name_to_scheme(scheme, ["Linear"])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            _set_scales(layer)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(saved)
    compressor.update_config(saved)
    return saved_with_tokenizer(folder, saved)


def _set_scales(layer: nn.Module) -> None:
    scale, weights = layer.weight_scale, layer.quantization_scheme.weights
    groups = layer.weight.data.reshape(scale.shape[0], scale.shape[1] if scale.ndim > 1 else 1, -1)
    largest = 448.0 if weights.type == "float" else 2 ** (weights.num_bits - 1) - 1
    scale.data.copy_((groups.abs().amax(-1) / largest).reshape(scale.shape))
    if getattr(layer, "weight_zero_point", None) is not None:
        layer.weight_zero_point.data.zero_()


def _compressed(scheme: str) -> Callable[[Path], Any]:
    return lambda folder: load(compressed(scheme, folder))


def _on_disk(folder: Path) -> Any:
    first = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"]
    places = {**dict.fromkeys(first, "cpu"), "model.layers.1": "disk", "lm_head": "disk"}
    return load(folder, device_map=places, offload_folder=str(folder / "offloaded"))


def _offloaded(folder: Path) -> Any:
    from accelerate import cpu_offload

    model = load(folder)
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def unavailable(method: str, folder: Path) -> Path:
    """A checkpoint that says that it was quantised by a method whose package is not installed."""
    saved = folder / method
    load(folder).save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (saved / "config.json").write_text(json.dumps(config))
    return saved_with_tokenizer(folder, saved)


_BY_CONFIG = "`quantization_config=TorchAoConfig({}())`"
_BY_BITS = "`quantization_config=BitsAndBytesConfig(load_in_{}=True)`"
_ROUNDED = "rounds activations to 8 bits"

WEIGHTS = (
    Weights(
        "torchao int8", "torchao", _BY_CONFIG.format("Int8WeightOnlyConfig"), _torchao("Int8WeightOnlyConfig")
    ),
    Weights(
        "torchao int8, int8 activations",
        "torchao",
        _BY_CONFIG.format("Int8DynamicActivationInt8WeightConfig"),
        _torchao("Int8DynamicActivationInt8WeightConfig"),
        _ROUNDED,
    ),
    Weights(
        "torchao int4, int8 activations",
        "torchao",
        "`quantization_config=TorchAoConfig(Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, ...))`",
        _torchao_int4,
        _ROUNDED,
    ),
    Weights(
        "torchao FP8",
        "torchao",
        _BY_CONFIG.format("Float8WeightOnlyConfig"),
        _torchao("Float8WeightOnlyConfig"),
    ),
    Weights("torchao int8, saved", "torchao", "the folder or hub id", _saved_torchao),
    Weights(
        "bitsandbytes int8",
        "bitsandbytes",
        _BY_BITS.format("8bit"),
        _in_8_bits,
        _ROUNDED + ", outliers aside, which it looks for in all tokens of a pass",
    ),
    Weights("bitsandbytes nf4", "bitsandbytes", _BY_BITS.format("4bit"), _in_4_bits),
    Weights(
        "compressed-tensors FP8", "compressed_tensors", "the folder or hub id", _compressed("FP8_DYNAMIC")
    ),
    Weights(
        "compressed-tensors W8A8", "compressed_tensors", "the folder or hub id", _compressed("W8A8"), _ROUNDED
    ),
    Weights("compressed-tensors W4A16", "compressed_tensors", "the folder or hub id", _compressed("W4A16")),
    Weights("LoRA around a model", "peft", "`WimKernel(peft_model, tokenizer)`", with_lora),
    Weights(
        "LoRA in a model",
        "peft",
        "`model.load_adapter(...)`, then `WimKernel(model, tokenizer)`",
        _loaded_lora,
    ),
    Weights(
        "LoRA, merged",
        "peft",
        "`WimKernel(peft_model.merge_and_unload(), tokenizer)`",
        lambda folder: with_lora(folder).merge_and_unload(),
    ),
    Weights(
        "a LoRA adapter's folder",
        "peft",
        "the adapter's folder or hub id",
        lambda folder: load(saved_lora(folder)),
        "the base model that it names is loaded first",
    ),
    Weights(
        "compiled",
        "",
        "`WimKernel(torch.compile(model), tokenizer)`, or after `model.compile()`",
        lambda folder: torch.compile(load(folder)),
        "runs uncompiled: the kernel's passes have many shapes",
    ),
    Weights(
        "partly on disk", "", '`device_map={..., "model.layers.1": "disk"}, offload_folder=...`', _on_disk
    ),
    Weights("offloaded by accelerate", "", "`accelerate.cpu_offload(model)`", _offloaded),
)
