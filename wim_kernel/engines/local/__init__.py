"""The in-process engine: tensors, and no margins."""
