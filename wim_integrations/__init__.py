"""Writing in the Margins for LangChain and LlamaIndex; each is an extra of this package."""
