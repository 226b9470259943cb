"""The errors of the kernel. Each says what is wrong and what to do next."""

from __future__ import annotations

from pathlib import Path


class WimError(Exception):
    """Base of every error the kernel raises on its own account."""


class EmptyDocumentError(WimError, ValueError):
    """There is no text to read."""

    def __init__(self) -> None:
        super().__init__("The document is empty: give `read` at least one chunk that holds text.")


class ContextOverflowError(WimError, ValueError):
    """Something does not fit the model's context window.

    Attributes:
        tokens: how many tokens there are.
        fits: how many would fit.
    """

    def __init__(self, what: str, tokens: int, fits: int, advice: str) -> None:
        super().__init__(f"{what} has {tokens} tokens and {fits} fit. {advice}")
        self.tokens = tokens
        self.fits = fits


class UnsupportedModelError(WimError):
    """No path of the engine gives the same results as the model's own forward pass."""


class ModelNotFoundError(WimError, OSError):
    """A model's name or files cannot be resolved."""


class MemoryBudgetError(WimError, MemoryError):
    """One reading alone needs more memory than the kernel's budget for readings.

    Attributes:
        needed: bytes that the reading needs.
        budget: bytes that readings may take.
    """

    def __init__(self, needed: int, budget: int) -> None:
        super().__init__(
            f"The reading needs {needed:,} bytes of keys and values and the budget is {budget:,}. "
            "Give the kernel a larger `budget_bytes`, or read a shorter document."
        )
        self.needed = needed
        self.budget = budget


class DeviceMemoryError(WimError, MemoryError):
    """The device has no memory for a step, however few branches decode together. The kernel stays good for use."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(
            f"The device has no memory to {what} ({detail}). Give the kernel a smaller `budget_bytes`, ask for fewer "
            "new tokens, or read a shorter document."
        )


class ReadingFileError(WimError, OSError):
    """A saved reading cannot be written, or must not be used here.

    Attributes:
        path: the file.
        reason: why.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be used as a saved reading: {reason}. Read the document again instead."
        )
        self.path = path
        self.reason = reason
