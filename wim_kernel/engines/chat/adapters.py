"""Finds the integration that drives a chat model, by the package that the model's class comes from.

An integration registers itself under the entry point group ``wim_kernel.chat_models``: the name is the framework's
package, the value a callable from a chat model to a `ChatBackend`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from wim_kernel.engines.chat.backend import ChatBackend

GROUP = "wim_kernel.chat_models"


def as_backend(llm: Any) -> ChatBackend:
    """A chat model as a `ChatBackend`; a backend is returned as it is.

    Raises:
        TypeError: if no installed integration knows the object's class.
    """
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
