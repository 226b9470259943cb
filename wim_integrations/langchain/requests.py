"""Requests: a runnable's input, parsed before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages.content import Citation
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict

from wim_integrations.langchain.citing import citation_annotations
from wim_integrations.langchain.documents import DocumentReading
from wim_integrations.langchain.events import stream_writer
from wim_integrations.langchain.outputs import MarginData
from wim_kernel import Margin, MissingInputError, Options, Reading, WimResult

Sources = dict[int, tuple[Any, DocumentReading]]
"""Readings by ``id()`` of the documents given, with the documents, so that the ids stay valid."""


@dataclass
class Request:
    """One parsed input.

    Attributes:
        inputs: the input as given.
        question: the question.
        source: the documents' reading; None if no document has text and the runnable has an ``empty_response``.
        options: the kernel's options.
    """

    inputs: Mapping[str, Any]
    question: str
    source: DocumentReading | None
    options: Options = field(default_factory=Options)

    @property
    def reading(self) -> Reading:
        """The documents' reading."""
        assert self.source is not None, "the request has no documents with text"
        return self.source.reading

    def margins_data(self, margins: Iterable[Margin]) -> list[MarginData]:
        """Margins as plain JSON data."""
        assert self.source is not None, "the request has no documents with text"
        return [self.source.margin_data(margin) for margin in margins]

    def citations(self, result: WimResult) -> list[Citation]:
        """A result's citations as LangChain's annotations."""
        assert self.source is not None, "the request has no documents with text"
        return citation_annotations(result, self.source)


def someone_watches(run_manager: Any, config: RunnableConfig) -> bool:
    """Whether a consumer sees the events of a call while it runs, although the call itself does not stream."""
    # Only handlers of event streams have this attribute; langgraph relies on it, too.
    streaming = any(hasattr(handler, "tap_output_aiter") for handler in run_manager.handlers)
    return streaming or stream_writer(config) is not None


def joined_input(parts: Sequence[Any]) -> Any:
    """The sum of the chunks of an input.

    Raises:
        ValueError: for no chunks.
    """
    if not parts:
        raise ValueError("There is no input.")
    whole, *rest = (AddableDict(part) if isinstance(part, Mapping) else part for part in parts)
    for part in rest:
        whole = whole + part
    return whole


def first(inputs: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of several names under which the input has a value."""
    return next((name for name in names if inputs.get(name) is not None), None)


def missing(inputs: Mapping[str, Any], names: Sequence[str]) -> MissingInputError:
    """The error for an input without a value under any of several names."""
    return MissingInputError(
        f"The input has {sorted(map(str, inputs))}, and nothing called {' or '.join(names)}."
    )
