"""A tool with which an agent asks about long documents that it may name but not choose freely."""

from __future__ import annotations

import mimetypes
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackHandler, Callbacks
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import StructuredTool, ToolException
from pydantic import BaseModel, Field, create_model

from wim_integrations.langchain.documents import Documents, as_documents
from wim_integrations.langchain.events import NO_STREAM
from wim_integrations.langchain.runnable import WimRunnable
from wim_kernel import WimError, WimKernel
from wim_kernel.files import FileError, read_document

DESCRIPTION = (
    "Answers a question from {documents}. The whole text is read, with notes taken on the way, so ask what you want to "
    "know in one plain question; the text itself is not returned."
)
TRUNCATED = "\n[truncated]"


def create_wim_tool(
    kernel: WimKernel,
    documents: Documents | Mapping[str, Documents] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    name: str = "ask_document",
    description: str | None = None,
    max_output_chars: int = 4000,
    **options: Any,
) -> StructuredTool:
    """A tool that answers questions about documents.

    The agent's model chooses the question and, where there are several documents, one of their names; never a path of
    its own. Content is the answer and the notes it stands on; the artifact is the whole output as plain JSON data.
    Margins are told while the tool runs: as its output deltas, to the graph's stream writer, and as custom events.
    What goes wrong with a document comes back as the tool's message, so that the agent can go on.

    Args:
        kernel: reads and answers.
        documents: one document (its parts in order), or several by name.
        folder: a folder of text, Markdown, HTML or PDF files, instead; the agent names a file in it or below it. Files
            added later can be asked about too.
        name: the tool's name.
        description: what the agent's model is told of the tool; by default says what it does and names the documents.
        max_output_chars: longest content, in characters.
        options: further fields of `WimRunnable`.

    Raises:
        TypeError: unless either documents or a folder are given.
        ValueError: if there are no documents.
    """
    if (documents is None) == (folder is None):
        raise TypeError("Give create_wim_tool either documents= or folder=.")
    library: Library
    if folder is not None:
        library = Folder(folder)
    elif isinstance(documents, Mapping):
        library = Named(documents)
    else:
        assert documents is not None
        library = Named({"the document": documents})
    if not library.names():
        raise ValueError("There are no documents to ask about.")
    if {"question_key", "documents_key"} & set(options):
        raise TypeError(
            "The tool's inputs have their own names: question_key and documents_key are not for it."
        )
    if max_output_chars <= len(TRUNCATED):
        raise ValueError(f"max_output_chars is more than {len(TRUNCATED)}, not {max_output_chars}.")
    reader = WimRunnable(kernel=kernel, **{"answer_tags": [NO_STREAM], **options})
    asker = _Asker(library, reader, max_output_chars)

    def ask(
        question: str, document: str | None = None, callbacks: Callbacks = None, runtime: Any = None
    ) -> Any:
        return asker.ask(question, document, _config(callbacks, runtime))

    async def aask(
        question: str, document: str | None = None, callbacks: Callbacks = None, runtime: Any = None
    ) -> Any:
        return await asker.aask(question, document, _config(callbacks, runtime))

    for function in (ask, aask):
        function.__annotations__["runtime"] = _runtime_type()
    return StructuredTool.from_function(
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


class Library:
    """The documents that a tool may read, by name."""

    def names(self) -> list[str]:
        """All names, in order."""
        raise NotImplementedError

    def get(self, name: str) -> list[Document]:
        """A document's parts.

        Raises:
            ToolException: if there is no such document, or it cannot be read.
        """
        raise NotImplementedError

    def explain(self, error: Any) -> str:
        """What an agent's model got wrong in its arguments."""
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return f"Ask a question about {self.described()}. What was given is wrong: {wrong}"

    def described(self) -> str:
        """The documents in words."""
        names = self.names()
        return names[0] if len(names) == 1 else "one of these documents: " + ", ".join(names)

    def arguments(self) -> type[BaseModel]:
        """What the agent's model fills in."""
        asked: dict[str, Any] = {
            "question": (str, Field(description="A plain question, complete in itself."))
        }
        names = self.names()
        if len(names) > 1:
            kind: Any = Literal[tuple(names)]
            asked["document"] = (kind, Field(description="Which document to read."))
        return create_model("AskDocument", **asked)


class Named(Library):
    """Documents given by name."""

    def __init__(self, documents: Mapping[str, Documents]) -> None:
        self.documents = {name: as_documents(parts) for name, parts in documents.items()}
        for name, parts in self.documents.items():
            if not parts:
                raise ValueError(f"There are no documents in {name!r}.")

    def names(self) -> list[str]:
        """All names, in order."""
        return list(self.documents)

    def get(self, name: str) -> list[Document]:
        """A document's parts."""
        if name not in self.documents:
            raise ToolException(
                f"There is no document called {name!r}. There are: {', '.join(self.documents)}."
            )
        return self.documents[name]


class Folder(Library):
    """Text, Markdown, HTML and PDF files in a folder and below it, by their paths from there.

    Nothing outside it and nothing hidden, by whatever name or link. The files read last stay in memory.
    """

    MOST_NAMES = 100
    MOST_FILES = 16

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder.")
        self._read: OrderedDict[tuple[str, int, int], list[Document]] = OrderedDict()

    def names(self) -> list[str]:
        """All names, in order."""
        names = (path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*")))
        return [name for name in names if self._file(name) is not None]

    def get(self, name: str) -> list[Document]:
        """A file's text."""
        path = self._file(name)
        if path is None:
            raise ToolException(f"There is no document called {name!r}. There are: {self._listed()}.")
        state = path.stat()
        key = name, state.st_mtime_ns, state.st_size
        found = self._read.pop(key, None)
        if found is None:
            try:
                (chunk,) = read_document([path])
            except FileError as error:
                raise ToolException(str(error).replace(os.fspath(path), name)) from error
            found = [Document(page_content=chunk.text, metadata={"source": name})]
        self._read[key] = found
        while len(self._read) > self.MOST_FILES:
            self._read.popitem(last=False)
        return found

    def described(self) -> str:
        """The documents in words."""
        return f"one of these documents: {self._listed()}"

    def arguments(self) -> type[BaseModel]:
        """What the agent's model fills in."""
        return create_model(
            "AskDocument",
            question=(str, Field(description="A plain question, complete in itself.")),
            document=(str, Field(description="Which document to read, by its name.")),
        )

    def _listed(self) -> str:
        names = self.names()
        more = f", and {len(names) - self.MOST_NAMES} more" if len(names) > self.MOST_NAMES else ""
        return ", ".join(names[: self.MOST_NAMES]) + more

    def _file(self, name: str) -> Path | None:
        """The file of that name, if agents may read it."""
        if not name or not name.isprintable() or ".." in PurePosixPath(name).parts:
            return None
        try:
            path = (self.folder / name).resolve()
            within = path.relative_to(self.folder)
        except (ValueError, OSError):
            return None
        hidden = any(part.startswith(".") for part in (*within.parts, *PurePosixPath(name).parts))
        return path if not hidden and path.is_file() and _may_be_text(path) else None


def _may_be_text(path: Path) -> bool:
    """Whether a file's name does not say that it is something else."""
    kind, packed = mimetypes.guess_type(path.name)
    textual = ("text/", "application/pdf", "application/json", "application/xhtml+xml", "application/xml")
    return packed is None and (kind is None or kind.startswith(textual))


class _Asker:
    """What the tool does."""

    def __init__(self, library: Library, reader: WimRunnable, max_output_chars: int) -> None:
        self.library = library
        self.reader = reader
        self.max_output_chars = max_output_chars

    def ask(self, question: str, document: str | None, config: RunnableConfig) -> tuple[str, dict[str, Any]]:
        """Content and artifact."""
        with _as_messages():
            return self._result(question, self.reader.invoke(self._input(question, document), config))

    async def aask(
        self, question: str, document: str | None, config: RunnableConfig
    ) -> tuple[str, dict[str, Any]]:
        """Content and artifact."""
        with _as_messages():
            asked = await run_in_executor(None, self._input, question, document)
            return self._result(question, await self.reader.ainvoke(asked, config))

    def _result(self, question: str, output: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return self._content(output), {"question": question, **output}

    def _input(self, question: str, document: str | None) -> dict[str, Any]:
        if document is None:  # there was one, whose name nobody has to say
            document = next(iter(self.library.names()), "")
        return {"question": question, "documents": self.library.get(document)}

    def _content(self, output: Mapping[str, Any]) -> str:
        notes = [
            f"- {margin['text'].strip()}{_place(margin)}" for margin in output["margins"] if margin["kept"]
        ]
        content = str(output["answer"]).strip()
        if notes:
            content += "\n\nNotes from the document:\n" + "\n".join(notes)
        if len(content) > self.max_output_chars:
            content = content[: self.max_output_chars - len(TRUNCATED)] + TRUNCATED
        return content


class _Deltas(BaseCallbackHandler):
    """Passes custom events on as a tool's output deltas."""

    run_inline = True  # the writer is known by context, which other threads do not have

    def __init__(self, emit: Callable[[Any], None]) -> None:
        self.emit = emit

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        """Pass an event on."""
        self.emit({"event": name, "data": data})


def _config(callbacks: Callbacks, runtime: Any) -> RunnableConfig:
    config = RunnableConfig()
    if runtime is not None:  # tasks of Python 3.10 do not know it by themselves
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
    """What is wrong with a question or a document is said to the agent, not raised through it."""
    try:
        yield
    except (WimError, ValueError) as error:
        raise ToolException(str(error)) from error


def _runtime_type() -> Any:
    """What LangGraph, where it is installed, injects into a tool's ``runtime`` parameter."""
    try:
        from langgraph.prebuilt import ToolRuntime
    except ImportError:
        return Any
    return ToolRuntime


def _place(margin: Mapping[str, Any]) -> str:
    source = margin["metadata"].get("source")
    if source is None or margin["start"] is None:
        return ""
    return f" ({source}, characters {margin['start']} to {margin['end']})"
