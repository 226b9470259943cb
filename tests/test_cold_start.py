"""What is kept from one start to the next: digests and the check on loading, while nothing changes that they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Loaded, TinyModel
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from wim_kernel import WimKernel
from wim_kernel.common import file_identity
from wim_kernel.common.file_identity import identity_of
from wim_kernel.engines import gguf, loading
from wim_kernel.engines.local import engine, kept_check
from wim_kernel.engines.local.engine import LocalEngine
from wim_kernel.engines.local.kept_check import FILE, KeptCheck

pytestmark = pytest.mark.slow


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are changed a moment ago are known by their times."""
    monkeypatch.setattr(file_identity, "_CLOCK_TICK", 0)


@pytest.fixture
def folder(tiny_model: TinyModel, smollm2: Loaded, tmp_path: Path) -> Path:
    """A checkpoint."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    smollm2[1].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The name of each model that is checked. Results are kept in the test's own folder."""
    made: list[str] = []
    choose = engine.choose_cache

    def count(runner: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(type(runner.model).__name__)
        return choose(runner, *args, **kwargs)

    monkeypatch.setattr(engine, "choose_cache", count)
    monkeypatch.setenv("WIM_CACHE_DIR", str(tmp_path / "cache"))
    return made


def test_files_are_known_until_they_change(settled: None, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    known = identity_of([one, two])
    assert known == identity_of([two, one]) is not None
    stat = two.stat()
    two.write_text("3")
    os.utime(two, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of the last change cannot be set back
    assert identity_of([one, two]) not in (None, known)
    two.unlink()
    assert identity_of([one, two]) is None


def test_a_file_that_has_just_changed_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("1")
    assert identity_of([tmp_path / "new"]) is None


@pytest.mark.usefixtures("settled")
def test_a_model_that_was_checked_is_not_checked_again(folder: Path, checks: list[str]) -> None:
    first, second = (LocalEngine.from_pretrained(str(folder), device="cpu") for _ in range(2))
    assert len(checks) == 1
    assert second.cache_mode == first.cache_mode == "shared"
    assert second.heads == first.heads != ()
    assert second.reads_text is first.reads_text
    assert second.prefix_bytes(100, 3) == first.prefix_bytes(100, 3) > 0
    answers = [
        WimKernel(engine=each).ask("Who owned it?", ["A gull.", "Elsa owned it."], answer_tokens=4).answer
        for each in (first, second)
    ]
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("settled")
def test_whatever_the_result_depends_on_has_the_model_checked(
    folder: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**options: Any) -> int:
        before = len(checks)
        LocalEngine.from_pretrained(str(folder), device="cpu", **options)
        return len(checks) - before

    assert (load(), load()) == (1, 0)
    assert (load(dtype="bfloat16"), load(dtype="bfloat16")) == (1, 0)
    assert (load(weights="int8"), load(weights="int8")) == (1, 0)
    assert (load(attn_implementation="eager"), load(attn_implementation="eager")) == (1, 0)
    assert load(trust_remote_code=True) == 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert (load(), load()) == (1, 0)
    monkeypatch.setattr(kept_check, "machine_key", lambda: "another processor")
    assert (load(), load()) == (1, 0)


@pytest.mark.usefixtures("settled")
def test_a_result_that_cannot_be_read_is_found_anew(folder: Path, checks: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "cache" / FILE
    for damage in ("{", "[]", '{"KEY": 7}', '{"KEY": {"heads": [[0]]}}'):
        LocalEngine.from_pretrained(str(folder), device="cpu")
        (key,) = json.loads(kept.read_text())
        kept.write_text(damage.replace("KEY", key))
    assert len(checks) == 4


@pytest.mark.usefixtures("settled")
def test_a_model_of_a_caller_is_always_checked(folder: Path, checks: list[str]) -> None:
    for _ in range(2):
        WimKernel(*loading.load_model(folder, device="cpu"))
    assert len(checks) == 2


class TestCode:
    """A model whose code somebody has changed in this process has no key."""

    def key(self, model: PreTrainedModel) -> str | None:
        return KeptCheck(model, {}, Path("never made")).key

    @pytest.fixture
    def model(self, settled: None, folder: Path) -> PreTrainedModel:
        model = loading.load_model(folder, device="cpu")[0]
        assert self.key(model) is not None
        return model

    def test_a_replaced_function(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: (q, k))
        assert self.key(model) is None

    def test_a_replaced_method(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda mlp, hidden: hidden)
        assert self.key(model) is None

    def test_a_replaced_method_of_one_layer(self, model: PreTrainedModel) -> None:
        layer: Any = model.model.layers[0].mlp
        layer.forward = lambda hidden: hidden
        assert self.key(model) is None

    def test_a_hook(self, model: PreTrainedModel) -> None:
        model.model.layers[1].register_forward_hook(lambda *_: None)
        assert self.key(model) is None

    def test_other_attention(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *args: plain(*args))
        assert self.key(model) is None

    def test_a_module_of_others(self, model: PreTrainedModel) -> None:
        model.model.layers[0].mlp.act_fn = Doubled()
        assert self.key(model) is None

    def test_a_model_that_no_folder_holds(self, tiny_model: TinyModel) -> None:
        assert self.key(tiny_model("llama")) is None


class Doubled(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * hidden


def test_digests_are_kept_while_files_stay(
    settled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, copy = tmp_path / "model.gguf", tmp_path / "models" / "copy"
    copy.mkdir(parents=True)
    source.write_text("the source")
    (copy / "weights").write_text("the weights")
    described = {"weights": {"bytes": 11, "sha256": gguf._digest(copy / "weights")}}
    (copy / "manifest.json").write_text(json.dumps({"files": described}))
    read: list[str] = []
    digest = gguf._digest
    monkeypatch.setattr(gguf, "_digest", lambda path: read.append(path.name) or digest(path))
    for _ in range(2):
        assert gguf._known_damage(copy, copy.parent) is None
        assert gguf._known_digest(source, copy.parent) == digest(source)
    assert read == ["weights", "model.gguf"]
    (copy / "weights").write_text("the weightz")
    source.write_text("the sourze")
    assert "another digest" in str(gguf._known_damage(copy, copy.parent))
    assert gguf._known_digest(source, copy.parent) == digest(source)
    assert read[2:] == ["weights", "model.gguf"]
