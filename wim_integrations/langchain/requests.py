"""What a runnable makes of an input before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict

from wim_integrations.langchain.documents import DocumentReading
from wim_integrations.langchain.events import stream_writer
from wim_integrations.langchain.outputs import MarginData
from wim_kernel import Margin, MissingInputError, Options, Reading

Sources = dict[int, tuple[Any, DocumentReading]]
"""Readings by the identity of the documents given, which are kept alive beside them."""


@dataclass
class Request:
    """One input, understood.

    Attributes:
        inputs: as given.
        question: what is asked.
        source: the documents; None if none holds text and the runnable has an answer for that.
        options: for the kernel.
    """

    inputs: Mapping[str, Any]
    question: str
    source: DocumentReading | None
    options: Options = field(default_factory=Options)

    @property
    def reading(self) -> Reading:
        """The documents' reading."""
        assert self.source is not None, "nothing is read where there is nothing to read"
        return self.source.reading

    def margins_data(self, margins: Iterable[Margin]) -> list[MarginData]:
        """Margins as plain JSON data."""
        assert self.source is not None, "nothing is read where there is nothing to read"
        return [self.source.margin_data(margin) for margin in margins]


def someone_watches(run_manager: Any, config: RunnableConfig) -> bool:
    """Whether events of a call that is not a stream are seen while it runs."""
    # what tells an event stream's handler from others; langgraph relies on it too
    streaming = any(hasattr(handler, "tap_output_aiter") for handler in run_manager.handlers)
    return streaming or stream_writer(config) is not None


def added(parts: Sequence[Any]) -> Any:
    """An input that came in parts.

    Raises:
        ValueError: if none came.
    """
    if not parts:
        raise ValueError("There is no input.")
    whole, *rest = (AddableDict(part) if isinstance(part, Mapping) else part for part in parts)
    for part in rest:
        whole = whole + part
    return whole


def first(inputs: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of several names that an input goes by."""
    return next((name for name in names if inputs.get(name) is not None), None)


def missing(inputs: Mapping[str, Any], names: Sequence[str]) -> MissingInputError:
    """The error for an input that has nothing by any of several names."""
    return MissingInputError(
        f"The input has {sorted(map(str, inputs))}, and nothing called {' or '.join(names)}."
    )
