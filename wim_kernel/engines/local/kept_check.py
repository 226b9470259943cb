"""What the check on loading found, kept for a model's files, so that it is not made at every start.

A check is left out only if nothing that it depends on has changed: the files, the config, the options, the processor,
PyTorch, transformers, this package, and the code of the model, which other code may have replaced in this process. It
is always made for models on other devices than CPUs, for code that comes with a checkpoint, and for a model object that
a caller hands over.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wim_kernel.common.file_identity import identity_of
from wim_kernel.common.kept_json import read_json, write_json
from wim_kernel.engines.base import Head
from wim_kernel.engines.local.cpu_dtype import machine_key

FILE = "checked.json"
_MOST = 64
"""Results that are kept; the oldest are dropped."""
_PACKAGES = tuple(f"{Path(inspect.getfile(package)).parent}{os.sep}" for package in (torch, transformers))
_LIBRARY = str(Path(inspect.getfile(inspect)).parent)  # Python's own


@dataclass(frozen=True)
class Found:
    """What was found of a model that shares its prefix.

    Attributes:
        bytes_per_token: see `wim_kernel.engines.local.selfcheck.Checked`.
        bytes_per_boundary: see there.
        heads: see there.
        reads_text: whether it predicts English better than chance.
    """

    bytes_per_token: int
    bytes_per_boundary: int
    heads: tuple[Head, ...]
    reads_text: bool


class KeptCheck:
    """Results of checks in a folder, for one model that was just loaded, and not touched since.

    Args:
        model: the model.
        options: the engine's options.
        folder: where results are kept.
    """

    def __init__(self, model: PreTrainedModel, options: Mapping[str, Any], folder: Path) -> None:
        self.path = folder / FILE
        self.key = _key(model, options)

    def find(self) -> Found | None:
        """The result for the model; None if there is none, or anything may have changed."""
        kept: Any = None if self.key is None else read_json(self.path).get(self.key)
        with suppress(KeyError, TypeError, ValueError):
            heads = tuple((int(layer), int(head)) for layer, head in kept["heads"])
            sizes = int(kept["bytes_per_token"]), int(kept["bytes_per_boundary"])
            return Found(*sizes, heads, kept["reads_text"] is True)
        return None

    def keep(self, found: Found) -> None:
        """Keep a result, or do without."""
        if self.key is not None:
            others = list(read_json(self.path).items())[-_MOST + 1 :]
            with suppress(OSError):
                write_json(self.path, {**dict(others), self.key: vars(found)})


def _key(model: PreTrainedModel, options: Mapping[str, Any]) -> str | None:
    """What a result depends on; None if the model may be another than its files and the packages make it."""
    folder = Path(model.name_or_path or "-")
    on_cpu = all(weight.device.type == "cpu" for weight in model.parameters())
    if not on_cpu or not folder.is_dir() or not _is_as_installed(model):
        return None
    own = Path(__file__).parents[2]  # this package's folder
    files = [*(file for file in folder.iterdir() if file.is_file()), *own.rglob("*.py")]
    identity = identity_of([*files, *(Path(inspect.getfile(code)) for code in _code_of(model))])
    if identity is None:
        return None
    chosen = {name: value for name, value in options.items() if value is not None}
    known = [identity, machine_key(), transformers.__version__, type(model).__qualname__, str(model.dtype)]
    known.append(str(model.config._attn_implementation))
    known += [
        model.config.to_json_string(use_diff=False),
        json.dumps(chosen, sort_keys=True, default=str),
    ]
    return hashlib.blake2b("\n".join(known).encode(), digest_size=16).hexdigest()


def _code_of(model: PreTrainedModel) -> list[ModuleType]:
    """The files of code that the model's modules come from."""
    return [sys.modules[name] for name in sorted({type(module).__module__ for module in model.modules()})]


def _is_as_installed(model: PreTrainedModel) -> bool:
    """Whether all of the model's code is that of the packages: no hooks, no functions that others have put there."""
    hooked = any("forward" in vars(module) or _has_hooks(module) for module in model.modules())
    everywhere = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    if hooked or everywhere:
        return False
    attention = ALL_ATTENTION_FUNCTIONS.get(model.config._attn_implementation)
    functions = [function for code in _code_of(model) for function in _functions(code)]
    # a function of PyTorch that is no Python function, unless a package of faster attention has replaced it
    replaced = isinstance(nn.functional.scaled_dot_product_attention, FunctionType)
    return not replaced and all(map(_is_installed, [*functions, *filter(None, [attention])]))


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _functions(code: ModuleType) -> Iterator[Any]:
    """The functions of a file of code, and the methods of its modules."""
    for item in list(vars(code).values()):
        if isinstance(item, FunctionType):
            yield item
        elif inspect.isclass(item) and issubclass(item, nn.Module):
            yield from (method for method in vars(item).values() if isinstance(method, FunctionType))


def _is_installed(function: Any) -> bool:
    """Whether a function, and the one that it wraps, is defined in PyTorch, transformers or Python's own library."""
    pair = (function, inspect.unwrap(function))
    return all(isinstance(item, FunctionType) and _is_trusted(item.__code__.co_filename) for item in pair)


def _is_trusted(file: str) -> bool:
    return file.startswith(_PACKAGES) or (file.startswith(_LIBRARY) and "-packages" not in file)
