"""A tiny GGUF file, the copy kept of it, and a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from tiny_gguf_file import copy_in, write_tiny_gguf

from wim_kernel.engines import gguf as gguf_files
from wim_kernel.engines.loading import load_model


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


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("converted, though a copy is kept")

    monkeypatch.setattr(gguf_files, "convert", refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path, kept: Path) -> Path:
    """A plain safetensors checkpoint."""
    return Path(shutil.copytree(copy_in(kept), tmp_path / "checkpoint"))
