"""The documents that an agent's tool may read: documents by name, files of a folder, or a retriever's results."""

from __future__ import annotations

import mimetypes
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import ToolException
from pydantic import BaseModel, Field, create_model

from wim_integrations.langchain.documents import Documents, as_documents
from wim_kernel.common.concurrency import in_thread
from wim_kernel.text.files import FileError, read_document

Retriever = Runnable[str, Sequence[Document]]


class Library:
    """The documents that a tool may read, by name."""

    def names(self) -> list[str]:
        """All names, in order."""
        raise NotImplementedError

    def get(self, name: str) -> list[Document]:
        """A document's parts, by its name.

        Raises:
            ToolException: if there is no such document, or it cannot be read.
        """
        raise ToolException(f"There is no document called {name!r}.")

    def find(self, question: str, name: str | None, config: RunnableConfig) -> list[Document]:
        """The documents for a question; ``name`` is None if there is only one document.

        Raises:
            ToolException: if there is no such document, or it cannot be read.
        """
        return self.get(next(iter(self.names()), "") if name is None else name)

    async def afind(self, question: str, name: str | None, config: RunnableConfig) -> list[Document]:
        """See `find`."""
        return await in_thread(self.find, question, name, config)

    def explain(self, error: Any) -> str:
        """The message to the agent's model for wrong arguments."""
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return f"Ask a question about {self.described()}. These arguments are wrong: {wrong}"

    def described(self) -> str:
        """The documents in words."""
        names = self.names()
        return names[0] if len(names) == 1 else "one of these documents: " + ", ".join(names)

    def arguments(self) -> type[BaseModel]:
        """The tool's arguments, which the agent's model fills in."""
        fields: dict[str, Any] = {
            "question": (str, Field(description="A plain question, complete in itself."))
        }
        names = self.names()
        if len(names) > 1:
            kind: Any = Literal[tuple(names)]
            fields["document"] = (kind, Field(description="Which document to read."))
        return create_model("AskDocument", **fields)


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
    """Text, Markdown, HTML and PDF files in a folder and its subfolders, by their relative paths.

    Hidden files and files outside the folder cannot be read, not even through links. The last files read stay in
    memory.
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
        """The tool's arguments, which the agent's model fills in."""
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
        """The path of a name; None for a file that agents may not read."""
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
    """Whether a file may have text: false if its name has the suffix of another type."""
    kind, compression = mimetypes.guess_type(path.name)
    textual = ("text/", "application/pdf", "application/json", "application/xhtml+xml", "application/xml")
    return compression is None and (kind is None or kind.startswith(textual))


class Retrieved(Library):
    """A retriever's results for each question."""

    def __init__(self, retriever: Retriever) -> None:
        if not isinstance(retriever, Runnable):
            raise TypeError(
                f"A retriever is a BaseRetriever or another runnable from a question to documents, not a "
                f"{type(retriever).__name__}."
            )
        self.retriever = retriever

    def names(self) -> list[str]:
        """A phrase for the tool's description."""
        return ["the documents that a search finds for it"]

    def find(self, question: str, name: str | None, config: RunnableConfig) -> list[Document]:
        """The retrieved documents, in the retriever's order."""
        return self._checked(question, self.retriever.invoke(question, config))

    async def afind(self, question: str, name: str | None, config: RunnableConfig) -> list[Document]:
        """See `find`."""
        return self._checked(question, await self.retriever.ainvoke(question, config))

    def _checked(self, question: str, found: Sequence[Document]) -> list[Document]:
        documents = as_documents(found)
        if not any(document.page_content.strip() for document in documents):
            raise ToolException(f"Nothing was found for {question!r}. Ask in other words.")
        return documents
