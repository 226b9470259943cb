"""Models from folders and by name: dtypes, arguments, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf_file import TEMPLATE, logits

from wim_kernel.common.errors import ModelNotFoundError, UnsupportedModelError
from wim_kernel.engines.loading import load_model
from wim_kernel.engines.local.cpu_dtype import faster_dtype

pytestmark = pytest.mark.slow


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
