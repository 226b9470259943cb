"""Adapters, such as LoRA: folders and hub repositories that hold changes to a base model, and name it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from wim_kernel.common.errors import ModelNotFoundError, UnsupportedModelError
from wim_kernel.engines.hub import first_line

WEIGHTS = "adapter_model.safetensors"

_HUB_OPTIONS = ("token", "revision", "local_files_only", "force_download", "subfolder")


def base_of(source: str, options: Mapping[str, Any]) -> str | None:
    """The base model that an adapter names; None if ``source`` is no adapter.

    Args:
        source: a folder or a hub id.
        options: options of downloads from the Hub, and others, which are ignored.
    """
    try:
        path = find_adapter_config_file(source, **_of_hub(options))
        found = None if path is None else json.loads(Path(path).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    return str(found) if found else None


def adapt(model: PreTrainedModel, source: str, options: Mapping[str, Any]) -> None:
    """Load an adapter into its base model.

    Raises:
        ModelNotFoundError: if the package peft is not installed, or the adapter has no safetensors weights.
        UnsupportedModelError: if the adapter is of a kind that transformers does not load.
    """
    if not is_peft_available():
        raise ModelNotFoundError(f"{source!r} is an adapter, which needs the package peft: pip install peft")
    hub = _of_hub(options)
    try:
        cached_file(source, WEIGHTS, **hub)
    except OSError as error:
        raise ModelNotFoundError(
            f"The adapter {source!r} has no file {WEIGHTS}: {first_line(error)} Pickled weights are not loaded."
        ) from error
    try:
        model.load_adapter(source, adapter_kwargs=hub)
    except ValueError as error:
        raise UnsupportedModelError(
            f"The adapter {source!r} cannot be loaded: {first_line(error)}"
        ) from error


def _of_hub(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
