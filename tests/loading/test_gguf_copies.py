"""The copies kept of GGUF files: exact, used again, made again when damaged, made once by two processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from forked import Forked
from tiny_gguf_file import F16, F32, Q4_1, TEMPLATE, copy_in, logits, write_tiny_gguf
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from wim_kernel.common.errors import UnsupportedModelError
from wim_kernel.engines import gguf as gguf_files
from wim_kernel.engines.loading import load_model
from wim_kernel.engines.local.engine import LocalEngine

pytestmark = pytest.mark.slow


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
