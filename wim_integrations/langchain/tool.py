"""A tool for agents, which answers questions about documents that the application chose."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal, NoReturn, get_args

from langchain_core.callbacks import BaseCallbackHandler, Callbacks
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import StructuredTool, ToolException

from wim_integrations.langchain.chat_model import Model, as_kernel
from wim_integrations.langchain.citing import search_results
from wim_integrations.langchain.documents import Documents
from wim_integrations.langchain.events import NO_STREAM
from wim_integrations.langchain.library import Folder, Library, Named, Retrieved, Retriever
from wim_integrations.langchain.runnable import WimRunnable
from wim_integrations.options import check_kernel, check_names
from wim_kernel import EmptyDocumentError, WimError
from wim_kernel.common.copying import refuse_to_pickle
from wim_kernel.text.tool_text import DESCRIPTION, TRUNCATED, report

Content = Literal["text", "search_result"]


def create_wim_tool(
    kernel: Model,
    documents: Documents | Mapping[str, Documents] | Retriever | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    retriever: Retriever | None = None,
    name: str = "ask_document",
    description: str | None = None,
    max_output_chars: int = 4000,
    content: Content = "text",
    **options: Any,
) -> StructuredTool:
    """A tool that answers questions about documents.

    The agent's model chooses the question and, if there are several documents, one of their names, but no path outside
    them. The tool's content is the answer and the kept notes; its artifact is the whole output as plain JSON data.
    While the tool runs, margins are emitted as output deltas, to the graph's stream writer, and as custom events.
    Errors about a question or a document are returned as the tool's message, so that the agent can continue.

    Args:
        kernel: the kernel, or a chat model.
        documents: one document (its parts in order), or several documents by name.
        folder: a folder of text, Markdown, HTML or PDF files, in place of ``documents``. The agent names a file in it
            or its subfolders, including files added later.
        retriever: a retriever that finds the documents for each question, in place of ``documents``; it may be given as
            ``documents``, too.
        name: the tool's name.
        description: the tool's description for the agent's model; the default names the documents.
        max_output_chars: most characters of the content.
        content: ``"text"``, or ``"search_result"`` for the answer and each kept margin as a ``search_result`` block,
            which Anthropic's models cite.
        options: further fields of `WimRunnable`.

    Raises:
        TypeError: unless exactly one of documents, folder and retriever is given.
        ValueError: if there are no documents.
    """
    check_names(options, [*WimRunnable.model_fields, *_ARGUMENTS], "create_wim_tool")
    kernel = as_kernel(kernel)
    check_kernel(kernel, "create_wim_tool")
    library = _library(documents, folder, retriever)
    if not library.names():
        raise ValueError("There are no documents to ask about.")
    if {"question_key", "documents_key"} & set(options):
        raise TypeError("The tool's arguments have fixed names: leave out question_key and documents_key.")
    if max_output_chars <= len(TRUNCATED):
        raise ValueError(f"max_output_chars is more than {len(TRUNCATED)}, not {max_output_chars}.")
    reader = WimRunnable(kernel=kernel, **{"answer_tags": [NO_STREAM], **options})
    if content not in get_args(Content):
        raise ValueError(f"content is one of {get_args(Content)}, not {content!r}.")
    answerer = _Answerer(library, reader, max_output_chars, content)

    def ask(
        question: str, document: str | None = None, callbacks: Callbacks = None, runtime: Any = None
    ) -> Any:
        return answerer.ask(question, document, _config(callbacks, runtime))

    async def aask(
        question: str, document: str | None = None, callbacks: Callbacks = None, runtime: Any = None
    ) -> Any:
        return await answerer.aask(question, document, _config(callbacks, runtime))

    for function in (ask, aask):
        function.__annotations__["runtime"] = _runtime_type()
    return WimTool.from_function(
        func=ask,
        coroutine=aask,
        name=name,
        description=description or DESCRIPTION.format(documents=library.described()),
        args_schema=library.arguments(),
        infer_schema=False,
        response_format="content_and_artifact",
        handle_tool_error=True,
        handle_validation_error=library.explain,
    )


class WimTool(StructuredTool):
    """A tool with a kernel, which its copies share."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)


def _library(
    documents: Documents | Mapping[str, Documents] | Retriever | None,
    folder: str | os.PathLike[str] | None,
    retriever: Retriever | None,
) -> Library:
    if sum(given is not None for given in (documents, folder, retriever)) != 1:
        raise TypeError("Give create_wim_tool either documents=, folder= or retriever=.")
    if folder is not None:
        return Folder(folder)
    if retriever is not None:
        return Retrieved(retriever)
    if isinstance(documents, Runnable):
        return Retrieved(documents)
    if isinstance(documents, Mapping):
        return Named(documents)
    assert documents is not None
    return Named({"the document": documents})


class _Answerer:
    """Answers the tool's calls."""

    def __init__(
        self, library: Library, reader: WimRunnable, max_output_chars: int, content: Content
    ) -> None:
        self.content = content
        self.library = library
        self.reader = reader
        self.max_output_chars = max_output_chars

    def ask(self, question: str, document: str | None, config: RunnableConfig) -> tuple[Any, dict[str, Any]]:
        """Answer a question; returns the content and the artifact."""
        with _as_messages():
            documents = self.library.find(question, document, config)
            output = self.reader.invoke({"question": question, "documents": documents}, config)
            return self._result(question, output)

    async def aask(
        self, question: str, document: str | None, config: RunnableConfig
    ) -> tuple[Any, dict[str, Any]]:
        """Answer a question; returns the content and the artifact."""
        with _as_messages():
            documents = await self.library.afind(question, document, config)
            output = await self.reader.ainvoke({"question": question, "documents": documents}, config)
            return self._result(question, output)

    def _result(self, question: str, output: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.content == "search_result":
            return search_results(output, self.max_output_chars), {"question": question, **output}
        return self._content(output), {"question": question, **output}

    def _content(self, output: Mapping[str, Any]) -> str:
        return report(str(output["answer"]), kept_notes(output), self.max_output_chars)


class _Deltas(BaseCallbackHandler):
    """A callback handler that emits custom events as the tool's output deltas."""

    run_inline = True  # the writer is in a context variable, which other threads do not have

    def __init__(self, emit: Callable[[Any], None]) -> None:
        self.emit = emit

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        """Emit the event."""
        self.emit({"event": name, "data": data})


def _config(callbacks: Callbacks, runtime: Any) -> RunnableConfig:
    config = RunnableConfig()
    if runtime is not None:  # asyncio tasks of Python 3.10 do not inherit it
        config["configurable"] = runtime.config.get("configurable") or {}
    if callbacks is not None:
        config["callbacks"] = callbacks
    emit = getattr(runtime, "emit_output_delta", None)
    if emit is not None and callbacks is not None and not isinstance(callbacks, list):
        manager = callbacks.copy()
        manager.add_handler(_Deltas(emit))
        config["callbacks"] = manager
    return config


@contextmanager
def _as_messages() -> Iterator[None]:
    """Turn errors about a question or a document into messages to the agent."""
    try:
        yield
    except EmptyDocumentError as error:
        raise ToolException("The document is empty: it holds no text.") from error
    except (WimError, ValueError) as error:
        raise ToolException(str(error)) from error


def _runtime_type() -> Any:
    """The type of a tool's ``runtime`` parameter, by which LangGraph injects it; Any without LangGraph."""
    try:
        from langgraph.prebuilt import ToolRuntime
    except ImportError:
        return Any
    return ToolRuntime


def kept_notes(output: Mapping[str, Any]) -> list[str]:
    """The kept margins of an output as lines: the number by which the answer cites it, its text, its place."""
    numbers = {
        found["extras"]["margin"]: f"[{found['extras']['number']}] "
        for found in output.get("citations") or ()
        if found["extras"]["number"] is not None
    }
    return [
        numbers.get(margin["index"], "") + margin["text"].strip() + _location(margin)
        for margin in output["margins"]
        if margin["kept"] and margin["text"].strip()
    ]


def _location(margin: Mapping[str, Any]) -> str:
    source = margin["metadata"].get("source")
    if source is None or margin["start"] is None:
        return ""
    return f" ({source}, characters {margin['start']} to {margin['end']})"


_ARGUMENTS = tuple(name for name in signature(create_wim_tool).parameters if name != "options")
