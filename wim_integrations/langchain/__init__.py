"""Writing in the Margins as LangChain runnables, chains, a compressor, a tool, and parts of agents."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wim_integrations.langchain.chains import create_wim_documents_chain, create_wim_map_reduce_chain
from wim_integrations.langchain.citing import cited_message
from wim_integrations.langchain.compressor import WimDocumentCompressor
from wim_integrations.langchain.decisions import review_request
from wim_integrations.langchain.outputs import MarginData, WimMarginsOutput, WimOutput
from wim_integrations.langchain.results import read_result
from wim_integrations.langchain.reviewing import reviewed
from wim_integrations.langchain.runnable import WimAnswer, WimMargins, WimRunnable
from wim_integrations.langchain.tool import create_wim_tool

if TYPE_CHECKING:
    from wim_integrations.langchain.middleware import WimMiddleware as WimMiddleware
    from wim_integrations.langchain.transformer import WimTransformer as WimTransformer

__all__ = [
    "MarginData",
    "WimAnswer",
    "WimDocumentCompressor",
    "WimMargins",
    "WimMarginsOutput",
    "WimOutput",
    "WimRunnable",
    "cited_message",
    "create_wim_documents_chain",
    "create_wim_map_reduce_chain",
    "create_wim_tool",
    "read_result",
    "review_request",
    "reviewed",
]

# Parts that need more than langchain-core, with their module and requirement. They are not in __all__, because
# `import *` imports every name in it.
_OPTIONAL = {
    "WimMiddleware": ("middleware", "langchain>=1.4"),
    "WimTransformer": ("transformer", "langgraph>=1.2"),
}


def __getattr__(name: str) -> Any:
    if name not in _OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, requirement = _OPTIONAL[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise ImportError(f"{name} needs {requirement}: pip install '{requirement}'") from error
