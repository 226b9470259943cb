"""Writing in the Margins as LlamaIndex synthesizer, node postprocessor, tool and events."""
