"""Writing in the Margins as a LlamaIndex response synthesizer, a node postprocessor and a tool."""

from wim_integrations.llama_index.citing import citation_blocks
from wim_integrations.llama_index.events import (
    WimAnswerEnd,
    WimAnswerStart,
    WimChunkRead,
    WimMarginRevised,
    WimMarginWritten,
)
from wim_integrations.llama_index.llm import WimLLM
from wim_integrations.llama_index.postprocessor import WimNodePostprocessor
from wim_integrations.llama_index.synthesizer import WimSynthesizer
from wim_integrations.llama_index.tool import WimMargin, WimProgress, create_wim_tool

__all__ = [
    "WimAnswerEnd",
    "WimAnswerStart",
    "WimChunkRead",
    "WimLLM",
    "WimMargin",
    "WimMarginRevised",
    "WimMarginWritten",
    "WimNodePostprocessor",
    "WimProgress",
    "WimSynthesizer",
    "citation_blocks",
    "create_wim_tool",
]
