"""Writing in the Margins for LangChain and LlamaIndex, each an extra of this package."""
