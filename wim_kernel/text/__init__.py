"""Text in, before any model: documents, sentences, prompts, schemas. No tensors, and nothing above is imported."""
