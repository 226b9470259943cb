"""Finds the integration that drives a chat model, by the package that the model's class comes from.

An integration registers itself under the entry point group ``wim_kernel.chat_models``: the name is the framework's
package, the value a callable from a chat model to a `ChatBackend`. If it has ``from_name``, that makes a backend from
a chat model's name, such as ``openai:gpt-5.6``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from wim_kernel.common.errors import ModelNotFoundError
from wim_kernel.engines.chat.backend import ChatBackend

GROUP = "wim_kernel.chat_models"


def as_backend(llm: Any) -> ChatBackend:
    """A chat model as a `ChatBackend`; a backend is returned as it is.

    Raises:
        TypeError: if no installed integration knows the object's class.
        ModelNotFoundError: if the chat model that a name stands for cannot be made.
    """
    if isinstance(llm, str):
        return _named(llm)
    if isinstance(llm, ChatBackend):
        return llm
    packages = dict.fromkeys(base.__module__.partition(".")[0] for base in type(llm).__mro__)
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    for package in packages:
        if package in known:
            backend: ChatBackend = known[package].load()(llm)
            return backend
    raise TypeError(
        f"A {type(llm).__module__}.{type(llm).__name__} is no chat model of a package that is known here "
        f"({', '.join(sorted(known)) or 'none is'}): give a chat model of LangChain or an LLM of LlamaIndex."
    )


def _named(name: str) -> ChatBackend:
    """A chat model by its name, made by the first installed integration that can."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            make = getattr(entry.load(), "from_name", None)
        except ImportError:  # its framework is not installed
            continue
        if make is not None:
            backend: ChatBackend = make(name)
            return backend
    raise ModelNotFoundError(
        f"The chat model {name!r} needs LangChain: pip install 'wim-integrations[chat-model]'."
    )
