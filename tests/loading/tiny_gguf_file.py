"""A GGUF file of a tiny llama, and what tests look at in it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
Q4_1, F16, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "F16", "F32"))


def write_tiny_gguf(path: Path, kind: gguf.GGMLQuantizationType = Q4_1) -> None:
    """A two-layer llama, by default in Q4_1, as the embedded model's file is, that converts within a second."""
    width, inner, heads, random = 64, 96, 2, np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", "ab", "cd"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int) -> None:
        weights = random.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weights)
            return
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), width)
    add("output_norm.weight", width)
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", width, width)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", inner, width)
        add(f"blk.{layer}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_in(cache: Path) -> Path:
    (copy,) = (entry for entry in (cache / "models").iterdir() if entry.is_dir())
    return copy


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(PROMPT).logits
