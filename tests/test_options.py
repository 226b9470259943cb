"""Options of the wrong type, limits that cannot hold, and models and files that are not what they should be."""

from __future__ import annotations

import copy
import inspect
import json
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import Loaded, TinyModel
from transformers import GenerationConfig

from wim_kernel import (
    ContextOverflowError,
    OptionError,
    ReadingFileError,
    UnsupportedModelError,
    WimError,
    WimKernel,
)
from wim_kernel.cache.disk import describe
from wim_kernel.cache.folder import ReadingFolder
from wim_kernel.run.option_checks import check_types
from wim_kernel.run.options import Options

TEXTS = ["The gull sat on the mast.", "Elsa Brandt owned the ship."]
FEW: dict[str, Any] = {"threshold": 0, "margin_style": "free", "margin_tokens": 3, "answer_tokens": 4}


@dataclass
class NotPrompts:
    question: str = "x"


WRONG: list[tuple[str, Any]] = [
    *(("threshold", value) for value in ("0.5", [0.5], True, float("nan"), {})),
    *((name, value) for name in ("top_k", "stop_after", "margin_batch") for value in ("3", 2.0, True, [1])),
    *((name, value) for name in ("margin_tokens", "answer_tokens") for value in ("3", 2.5, False)),
    *((name, value) for name in ("keep", "stop_when") for value in (3, [], {})),
    ("keep", "all"),
    *(("relevance", value) for value in (3, None, ["likelihood"], float)),
    *((name, value) for name in ("margin_style", "task", "answer_volume") for value in (3, [])),
    *((name, None) for name in ("task", "answer_volume")),
    *(("prompts", value) for value in ("{question}", {"question": "x"}, NotPrompts())),
    *(("variables", value) for value in ([("a", "b")], "a", 1)),
    *(
        (name, value)
        for name in ("margin_config", "answer_config")
        for value in ({"max_new_tokens": 3}, 64, "greedy")
    ),
    *(("answer_schema", value) for value in ("{}", Options, [], 3)),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_option_of_a_wrong_type_is_one_sentence(kernel: WimKernel, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"^{name} has to be .*\.$") as caught:
        kernel.ask("Who?", TEXTS, **{name: value})
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (TypeError, ValueError, WimError))


def test_every_option_has_a_type() -> None:
    for name in Options.__annotations__:
        with pytest.raises(OptionError, match=name):
            check_types({name: object()})


def test_valid_option_types_are_accepted(kernel: WimKernel) -> None:
    check_types(
        {name: None for name in Options.__annotations__}
        | {"relevance": len, "margin_style": "free"}
        | {"task": "answer", "answer_volume": "last"}
    )
    assert (
        kernel.ask("Who?", TEXTS, **{**FEW, "threshold": 0, "keep": lambda margin: True}).answer is not None
    )


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_max_time_ends_each_branch(kernel: WimKernel, seconds: float) -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=400, min_new_tokens=400, max_time=seconds)
    options = {
        **FEW,
        "margin_tokens": None,
        "answer_tokens": None,
        "margin_config": config,
        "answer_config": config,
    }
    result = kernel.ask("Who?", TEXTS, **options)
    assert len(result.token_ids) < 400
    assert all(1 <= len(margin.token_ids) < 400 for margin in result.margins)


@pytest.mark.parametrize("seconds", ["soon", float("nan"), [1]])
def test_max_time_is_seconds(kernel: WimKernel, seconds: Any) -> None:
    with pytest.raises(OptionError, match="max_time of a GenerationConfig is seconds"):
        kernel.ask("Who?", ["One."], answer_config=GenerationConfig(max_new_tokens=4, max_time=seconds))


def test_max_time_that_is_not_reached_changes_nothing(kernel: WimKernel) -> None:
    texts = []
    for seconds in (None, 600.0):
        config = GenerationConfig(do_sample=False, max_new_tokens=6, max_time=seconds)
        texts.append(kernel.ask("Who?", TEXTS, **{**FEW, "answer_config": config}).answer)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["penalty_alpha", "dola_layers", "token_healing"])
def test_settings_that_are_not_followed_are_named(kernel: WimKernel, name: str) -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=3)
    setattr(config, name, {"penalty_alpha": 0.6, "dola_layers": "high", "token_healing": True}[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel.ask("Who?", TEXTS, **{**FEW, "answer_config": config})
    assert any(f"do not follow {name}" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("question", ["Who owned it? " * 2000, "x " * 9000])
@pytest.mark.parametrize("overflow", ["volumes", "error"])
def test_overflow_blames_the_question_and_counts_from_zero(
    kernel: WimKernel, question: str, overflow: Any
) -> None:
    with pytest.raises(ContextOverflowError, match="The question, with its prompts") as caught:
        kernel.read(TEXTS, overflow=overflow).ask(question, **FEW)
    assert caught.value.fits >= 0
    assert " -" not in str(caught.value)


def test_overflow_by_new_tokens(kernel: WimKernel) -> None:
    with pytest.raises(ContextOverflowError, match="fewer new tokens") as caught:
        kernel.ask("Who?", TEXTS, **{**FEW, "answer_tokens": 10_000})
    assert " -" not in str(caught.value)
    assert ContextOverflowError("x", 3, -5, "y").fits == 0


# Saving and keeping


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are made this way on POSIX only")
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "device", "empty name"])
def test_save_replaces_nothing_but_files(kernel: WimKernel, tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "target", tmp_path / "there"
    if kind == "link":
        target.write_text("mine")
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path(os.devnull)
    else:
        path = Path("")
    before = path.lstat()
    with pytest.raises(ReadingFileError, match="Name a file"):
        kernel.read(TEXTS).save(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not target.exists() or target.read_text() == "mine"
    if kind in ("pipe", "folder", "device", "dangling link"):
        with pytest.raises(ReadingFileError):
            kernel.load(path)


def test_save_replaces_a_file(kernel: WimKernel, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("old")
    kernel.read(TEXTS).save(path)
    assert kernel.load(path).ask("Who?", **FEW).usage.prefill_tokens == 0


@pytest.mark.parametrize("name", ["", " "])
def test_cache_dir_with_an_empty_name_is_refused(
    kernel: WimKernel, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReadingFileError, match="its name is empty"):
        WimKernel(engine=kernel.engine, cache_dir=name)
    assert not list(tmp_path.iterdir())


def test_cache_dir_that_is_a_file_is_refused(kernel: WimKernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ReadingFileError, match="Name another folder"):
            WimKernel(engine=kernel.engine, cache_dir=path)


@pytest.mark.parametrize("why", ["full", "too small", "gone"])
def test_unusable_cache_dir_warns_once(
    kernel: WimKernel, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = WimKernel(engine=kernel.engine, cache_dir=tmp_path / "cache")
    folder = fresh.cache.budget.folder
    assert isinstance(folder, ReadingFolder)
    if why == "too small":
        folder.budget_bytes = 10
    elif why == "gone":
        (tmp_path / "cache").rmdir()
        (tmp_path / "cache").write_text("a file now")
    else:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for text in ("One.", "Two.", "Three."):
            fresh.read([text, *TEXTS]).prefill()
        assert fresh.cache.flush() == 0
        assert fresh.cache.flush() == 0
    told = [str(warning.message) for warning in caught if "cannot be kept" in str(warning.message)]
    assert len(told) == 1
    assert "name a folder that can be written to" in told[0]


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"3",
        b'{"__metadata__": []}',
        b'{"__metadata__": 3}',
        b"\xff" * 50,
        b"",
    ],
    ids=["lists", "objects", "list", "number", "list within", "number within", "no text", "nothing"],
)
def test_damaged_header_is_a_reading_file_error(kernel: WimKernel, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "reading"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ReadingFileError):
        kernel.load(path)


@pytest.mark.parametrize("said", ["[" * 100_000, "{}", "[]", '{"format": "wim-reading-2"}', "3", "null"])
def test_damaged_description_is_a_reading_file_error(tmp_path: Path, said: str) -> None:
    from wim_kernel.cache.disk import _digest

    header = json.dumps({"__metadata__": {"wim": said, "digest": _digest(said.encode())}}).encode()
    path = tmp_path / "reading"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ReadingFileError, match=r"not what `save` writes|format is"):
        describe(path)


# Models


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["llama", "bloom", "lfm2"])
def test_nan_weights_are_refused_by_name(
    tiny_model: TinyModel, smollm2: Loaded, kind: str, value: float
) -> None:
    model = copy.deepcopy(tiny_model(kind))
    name, weight = [item for item in model.named_parameters() if item[1].ndim == 2][-1]
    with torch.no_grad():
        weight[3, 3] = value
    with pytest.raises(UnsupportedModelError, match=f"hold NaN or infinity, such as {name}") as caught:
        WimKernel(model, smollm2[1])
    assert "branch" not in str(caught.value)


@pytest.mark.parametrize("family", ["Bart", "MBart", "Pegasus"])
def test_model_whose_own_forward_fails_is_refused(smollm2: Loaded, family: str) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "vocab_size": 49152}
    config = getattr(transformers, f"{family}Config")(
        **sizes, encoder_attention_heads=2, decoder_attention_heads=2, decoder_ffn_dim=16
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(UnsupportedModelError, match="its own forward pass fails") as caught:
        WimKernel(model, smollm2[1])
    assert "branch" not in str(caught.value)


def test_overflowing_activations_are_refused(tiny_model: TinyModel, smollm2: Loaded) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(UnsupportedModelError, match="load it in another dtype"):
        WimKernel(model, smollm2[1])


def test_the_engines_options_are_those_that_are_declared() -> None:
    from wim_kernel.engines.loading_options import EngineOptions
    from wim_kernel.engines.local.engine import LocalEngine

    taken = inspect.signature(LocalEngine).parameters
    assert set(taken) - {"model", "tokenizer", "kept"} == set(EngineOptions.__annotations__)
