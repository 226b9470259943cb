"""The in-process engine. All tensors are here; it knows nothing of margins."""
