"""Writing in the Margins as LangChain runnables, chains, a compressor and a tool."""

from wim_integrations.langchain.chains import create_wim_documents_chain, create_wim_map_reduce_chain
from wim_integrations.langchain.citing import cited_message
from wim_integrations.langchain.compressor import WimDocumentCompressor
from wim_integrations.langchain.outputs import MarginData, WimMarginsOutput, WimOutput
from wim_integrations.langchain.reviewing import reviewed
from wim_integrations.langchain.runnable import WimAnswer, WimMargins, WimRunnable
from wim_integrations.langchain.tool import create_wim_tool

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
    "reviewed",
]
