"""A transformers model: loaded, run and patched."""
