"""Tiny configurations of every causal language model that transformers maps: one table of sizes, and exceptions.

The sizes are set by the attributes that a config has. Where a family names or combines things its own way, `SPECIAL`
says how. `initializer_range` is large, so that what comes next depends on everything before, and no token wins
everywhere. The vocabulary is the embedded model's, so that its tokenizer serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Every kind of causal language model by its ``model_type``."""

VOCABULARY = 49152
MOST_PARAMETERS = 30_000_000
WINDOW = 16
"""Positions of sliding windows and chunked attention, and the number of keys that sparse attention selects."""

_RANGE = 0.3
_SIZES: tuple[tuple[int | float, str], ...] = (
    (VOCABULARY, "vocab_size"),
    (64, "hidden_size n_embd d_model dim word_embed_proj_dim embedding_size lru_width attention_hidden_size"),
    (
        96,
        "intermediate_size n_inner ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size intermediate_size_mlp "
        "mlp_hidden_size dense_intermediate_size shared_intermediate_size",
    ),
    (
        32,
        "moe_intermediate_size shared_expert_intermediate_size kv_lora_rank q_lora_rank "
        "moe_shared_expert_intermediate_size num_hash_buckets index_head_dim",
    ),
    (
        16,
        "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim mamba_d_state "
        "mamba_d_head state_size ssm_state_size mamba_head_dim linear_head_dim attention_window_size "
        "query_pre_attn_scalar",
    ),
    (WINDOW, "sliding_window attention_chunk_size index_topk"),
    (8, "mamba_n_heads mamba_num_heads rotary_dim d_kv"),
    (
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads mamba_dt_rank "
        "time_step_rank index_n_heads",
    ),
    (
        2,
        "num_hidden_layers n_layer n_layers num_layers num_key_value_heads num_kv_heads n_head_kv "
        "decoder_layers encoder_layers num_experts_per_tok moe_topk moe_k linear_num_key_heads mamba_expand expand",
    ),
    (1, "n_group topk_group mamba_n_groups n_groups first_k_dense_replace"),
    (128, "mamba_d_ssm"),
    (2048, "max_position_embeddings n_positions n_ctx max_seq_len"),
    (_RANGE, "initializer_range init_std"),
)


def build_model(kind: str) -> PreTrainedModel:
    """A tiny model of random weights, in float32; always the same for a kind.

    Raises:
        ValueError: if the config is not tiny.
    """
    config = tiny_config(kind)
    make = _maker(kind, config)
    with torch.device("meta"):
        empty = make(config, dtype=torch.float32)
    count = sum(weight.numel() for weight in empty.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{kind} would have {count:,} parameters.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(kind.encode()))
        model = make(config, dtype=torch.float32)
    return model.eval()


def _maker(kind: str, config: PreTrainedConfig) -> Callable[..., PreTrainedModel]:
    """What makes the model: its own class where the auto class knows only the config of the whole."""
    own: type[PreTrainedModel] = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    if isinstance(config, own.config_class):
        return own._from_config
    return transformers.AutoModelForCausalLM.from_config


def tiny_config(kind: str) -> PreTrainedConfig:
    """The tiny config of a kind; of a multimodal one, that of its text part."""
    return _tiny(CONFIG_MAPPING[kind]().get_text_config(decoder=True), SPECIAL.get(kind, {}))


def tiny_multimodal(kind: str) -> PreTrainedConfig:
    """The tiny config of a multimodal kind, with its towers."""
    usual = CONFIG_MAPPING[kind]()
    text = usual.get_text_config(decoder=True)
    parts = {"text_config": _tiny(text, SPECIAL.get(text.model_type, {})).to_dict()}
    for name, special in TOWERS[kind].items():
        tower = getattr(usual, name) or usual.sub_configs[name]()
        parts[name] = _tiny(tower, special).to_dict()
    return type(usual)(**parts, **MULTIMODAL.get(kind, {}))


def _tiny(usual: PreTrainedConfig, special: dict[str, Any]) -> PreTrainedConfig:
    sizes = {
        name: size
        for size, names in _SIZES
        for name in names.split()
        if isinstance(_attribute(usual, name), int | float) and _settable(usual, name)
    }
    if (
        _attribute(usual, "is_decoder") is False
    ):  # encoders, which read both ways unless their config says otherwise
        sizes["is_decoder"] = True
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    if _attribute(usual, "kv_lora_rank") is not None:
        sizes["num_key_value_heads"] = 4
    if (
        "layer_types" not in special
        and _settable(usual, "layer_types")
        and (types := _attribute(usual, "layer_types"))
    ):
        kinds = list(dict.fromkeys(types))
        sizes["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    arguments = {name: value for name, value in {**sizes, **special}.items() if value is not LEFT_OUT}
    return type(usual)(**arguments)


def _attribute(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # an attribute that differs between layers
        return None


def _settable(config: PreTrainedConfig, name: str) -> bool:
    name = config.attribute_map.get(name, name)
    return not isinstance(getattr(type(config), name, None), property)


LEFT_OUT = object()
"""In `SPECIAL`: an argument that stays at its default."""

_LIKE_LLAMA = {"head_dim": 16, "num_key_value_heads": 2}
_ATTENTION_BETWEEN = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
_GEMMA3N = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    "intermediate_size": 96,
    "laurel_rank": 16,
}
_GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
}
_DOTS3: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "shared_experts_intermediate_size": 32,
    "per_layer_config": {},
    "head_dim": 32,
}
_TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": _ATTENTION_BETWEEN,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "ministral": _LIKE_LLAMA,
    "hunyuan_v1_dense": _LIKE_LLAMA,
    "hunyuan_v1_moe": {**_LIKE_LLAMA, "moe_topk": 2},
    "nemotron": _LIKE_LLAMA,
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "qwen2_5_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    },
    "xmod": {"default_language": "en_XX"},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attention_head_size": 16,
        "feed_forward_size": 96,
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
        },
    },
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "dots3_note": _DOTS3,
    "dots3_note_text": _DOTS3,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "git": {"vision_config": _TINY_TOWER},
    "phi4_multimodal": {
        "vision_config": _TINY_TOWER,
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
        },
    },
    "lfm2": {**_CONVOLUTIONS, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": _CONVOLUTIONS,
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "layer_types": LEFT_OUT,
        "num_hidden_layers": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "zamba2": {
        "num_key_value_heads": 4,
        "head_dim": LEFT_OUT,
        "attention_hidden_size": LEFT_OUT,
        "layers_block_type": ["linear_attention", "hybrid"],
        "layer_types": LEFT_OUT,
    },
}

UNTRIED: dict[str, str] = {
    "blt": "it reads bytes, in patches of its own",
    "gemma4_assistant": "it drafts for another model, whose states it reads",
    "musicgen": "it writes codes of sound, several at a time",
    "musicgen_melody": "it writes codes of sound, several at a time",
}
"""Kinds that are not built, each with the reason."""

_TOWER: dict[str, Any] = {"image_size": 32, "patch_size": 16}
TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3": {"vision_config": _TOWER},
    "gemma4": {"vision_config": {}},
    "llama4": {
        "vision_config": {
            **_TOWER,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        }
    },
    "mistral3": {"vision_config": _TOWER},
    "qwen2_5_vl": {"vision_config": {"depth": 1, "out_hidden_size": 64}},
    "qwen3_vl": {"vision_config": {"depth": 1, "out_hidden_size": 64, "deepstack_visual_indexes": [0]}},
    "qwen3_5": {"vision_config": {"depth": 1, "out_hidden_size": 64}},
    "llava": {"vision_config": _TOWER},
    "internvl": {"vision_config": {"image_size": [32, 32], "patch_size": [16, 16]}},
    "smolvlm": {"vision_config": _TOWER},
    "lfm2_vl": {"vision_config": {}},
    "paligemma": {"vision_config": _TOWER},
}
"""Multimodal kinds, with what is special about their towers."""

MULTIMODAL: dict[str, dict[str, Any]] = {"gemma3": {"mm_tokens_per_image": 1}}
