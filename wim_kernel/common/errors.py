"""The errors of the kernel. Each message says what is wrong and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _again(kind: type[WimError], args: tuple[Any, ...], state: dict[str, Any]) -> WimError:
    """Rebuild an error without its constructor, whose arguments are the parts of the message."""
    base = OSError if issubclass(kind, OSError) else Exception  # the memory layout that `kind` has
    error: WimError = base.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class WimError(Exception):
    """Base of all errors of the kernel. Copies and pickles of an error keep its message and attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


class EmptyDocumentError(WimError, ValueError):
    """The document has no text.

    Args:
        advice: what else the caller can do.
    """

    def __init__(self, advice: str = "") -> None:
        super().__init__(f"The document is empty: give at least one chunk with text{advice}.")


class ChunkError(WimError, ValueError):
    """Plain data that was given as a chunk is not what `Chunk.to_dict` writes."""


class MarginsError(WimError, ValueError):
    """Given margins are malformed, or belong to another document."""


class MissingInputError(WimError, KeyError, ValueError):
    """An input, or a variable of a prompt, is missing."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its argument's repr


class UnknownOptionError(WimError, TypeError, ValueError):
    """An option does not exist."""


class NotPicklableError(WimError, TypeError):
    """An object holds a loaded model and cannot be pickled."""


class ContextOverflowError(WimError, ValueError):
    """Something does not fit the model's context window.

    Attributes:
        tokens: how many tokens there are.
        fits: how many tokens would fit.
    """

    def __init__(self, what: str, tokens: int, fits: int, advice: str) -> None:
        super().__init__(f"{what} has {tokens} tokens and {max(0, fits)} fit. {advice}")
        self.tokens = tokens
        self.fits = max(0, fits)


class UnsupportedModelError(WimError):
    """No cache mode of the engine gives the same results as the model's own forward pass."""


class ModelNotFoundError(WimError, OSError):
    """A model's name or files cannot be found."""


class MemoryBudgetError(WimError, MemoryError):
    """One reading alone needs more memory than the kernel's budget.

    Attributes:
        needed: bytes that the reading needs.
        budget: the budget in bytes.
    """

    def __init__(self, needed: int, budget: int) -> None:
        super().__init__(
            f"The reading needs {needed:,} bytes of keys and values and the budget is {budget:,}. "
            "Give the kernel a larger `budget_bytes`, or read a shorter document."
        )
        self.needed = needed
        self.budget = budget


class DeviceMemoryError(WimError, MemoryError):
    """The device has no memory for a step, even with one branch. The kernel stays usable."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(
            f"The device has no memory to {what} ({detail}). Give the kernel a smaller `budget_bytes`, ask for fewer "
            "new tokens, or read a shorter document."
        )


class OptionError(WimError, TypeError, ValueError):
    """An option is of the wrong type."""


class SchemaError(WimError, ValueError):
    """A JSON schema is malformed, has only endless values, or needs more tokens than the answer may have."""


class ForkError(WimError, RuntimeError):
    """A forked process used what only its parent has: an accelerator, or a running call."""


class ServerError(WimError, ConnectionError):
    """A server cannot be reached, refused a request, or broke off a response. The work before is kept.

    Attributes:
        base_url: the server's base URL.
        reason: what happened.
        status: the HTTP status; None without a response.
        passing: whether the same request may succeed later.
        margins: margins that the call had written, or was given, in chunk order, for `Reading.answer` together with
            ``chunks_read``. Margins of several questions follow each other, question by question.
        margins_by_question: the same margins, in one tuple for each of the call's questions, in their order.
        chunks_read: how many chunks the call had read; the last of them may have no margin yet.
        retry_after: seconds after which the server asks to be tried again.
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


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of any client carries; None if it carries none."""
    response = getattr(error, "response", None)
    found = [getattr(error, "status_code", None), getattr(error, "code", None)]
    found.append(getattr(response, "status_code", None))
    if isinstance(response, Mapping):  # of clients of AWS
        found.append(dict(response.get("ResponseMetadata") or {}).get("HTTPStatusCode"))
    return next((int(status) for status in found if isinstance(status, int)), None)


class ChatModelError(ServerError):
    """A chat model's request failed. The work before is kept, as in every `ServerError`.

    Attributes:
        model: the model's name.
    """

    def __init__(self, model: str, error: Exception) -> None:
        status = status_of(error)
        reason = f"a request failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        passing = status is None or status in (408, 409, 429) or status >= 500
        super().__init__(model, reason, status=status, passing=passing)
        self.model = model

    def __str__(self) -> str:
        return super().__str__().replace("The server at", "The chat model", 1)


class ReadingFileError(WimError, OSError):
    """A saved reading cannot be written, or cannot be used with this model.

    Attributes:
        path: the file.
        reason: what is wrong.
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
