"""The errors of the kernel. Each says what is wrong and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _again(kind: type[WimError], args: tuple[Any, ...], state: dict[str, Any]) -> WimError:
    """An error as it was, without its constructor: that one takes what the message was made of."""
    base = (
        OSError if issubclass(kind, OSError) else Exception
    )  # what is laid out as the others of its bases are
    error: WimError = base.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class WimError(Exception):
    """Base of every error the kernel raises on its own account. Copies and pickles of one say the same."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


class EmptyDocumentError(WimError, ValueError):
    """There is no text to read.

    Args:
        advice: what else to do about it.
    """

    def __init__(self, advice: str = "") -> None:
        super().__init__(f"The document is empty: give at least one chunk that holds text{advice}.")


class ChunkError(WimError, ValueError):
    """What was handed in as a chunk's plain data is not that."""


class MarginsError(WimError, ValueError):
    """What was handed in as margins is not that."""


class MissingInputError(WimError, KeyError, ValueError):
    """An input, or a variable of a prompt, is not there."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its argument's repr


class UnknownOptionError(WimError, TypeError, ValueError):
    """There is no option of that name."""


class NotPicklableError(WimError, TypeError):
    """An object holds a loaded model, which does not travel between processes."""


class ContextOverflowError(WimError, ValueError):
    """Something does not fit the model's context window.

    Attributes:
        tokens: how many tokens there are.
        fits: how many would fit.
    """

    def __init__(self, what: str, tokens: int, fits: int, advice: str) -> None:
        super().__init__(f"{what} has {tokens} tokens and {max(0, fits)} fit. {advice}")
        self.tokens = tokens
        self.fits = max(0, fits)


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


class OptionError(WimError, TypeError, ValueError):
    """An option is of the wrong type."""


class SchemaError(WimError, ValueError):
    """No answer can be written to a JSON schema: it is none, has no end, or needs more tokens than there are."""


class ForkError(WimError, RuntimeError):
    """A forked process was asked for what only its parent has: an accelerator, or a call under way."""


class ServerError(WimError, ConnectionError):
    """A server cannot be reached, refused a request, or broke off in the middle. What was done before is kept.

    Attributes:
        base_url: which server.
        reason: what happened.
        status: the HTTP status, if it answered with one.
        passing: whether the same request may well succeed later.
        margins: margins that the call had written, or was given, in chunk order. `Reading.answer` takes them together
            with ``chunks_read``. A call with several questions has all of theirs here, one question after another.
        margins_by_question: the same, in one tuple for each of the call's questions, in their order.
        chunks_read: how many chunks the call had read. Those that have no margin yet are not among ``margins``.
        retry_after: seconds that it asks to be left alone for.
    """

    def __init__(
        self, base_url: str, reason: str, *, status: int | None = None, passing: bool = True
    ) -> None:
        super().__init__(reason)
        self.base_url = base_url
        self.reason = reason
        self.status = status
        self.passing = passing
        self.margins_by_question: tuple[
            tuple[Any, ...], ...
        ] = ()  # of Margin, which raises errors of this file
        self.chunks_read = 0
        self.retry_after = 0.0

    @property
    def margins(self) -> tuple[Any, ...]:
        """The margins of all questions, each a `wim_kernel.Margin`."""
        return tuple(margin for margins in self.margins_by_question for margin in margins)

    def __str__(self) -> str:
        done = ""
        if self.chunks_read:
            done = (
                f" Before that, {self.chunks_read} chunks were read and {len(self.margins)} margins written"
            )
            done += " (they are in this error's `margins`)." if self.margins else "."
            done += " Asking again continues from what it has cached."
        return f"The server at {self.base_url}: {self.reason}.{done}"


class ReadingFileError(WimError, OSError):
    """A saved reading cannot be written, or must not be used here.

    Attributes:
        path: the file.
        reason: why.
    """

    def __init__(
        self,
        path: Path,
        reason: str,
        advice: str = "Read the document again instead.",
        *,
        use: str = "as a saved reading",
    ) -> None:
        super().__init__(f"{path} cannot be used {use}: {reason}. {advice}")
        self.path = path
        self.reason = reason
