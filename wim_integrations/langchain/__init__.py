"""Writing in the Margins as LangChain runnables, chains, a compressor and a tool."""
