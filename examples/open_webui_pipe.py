"""
title: Writing in the Margins
description: Reads the files of a chat, shows what it finds while it reads, and answers with citations.
version: 0.1.0
required_open_webui_version: 0.6.0
requirements: wim-integrations

A pipe function for Open WebUI: paste this file under Admin Panel, Functions, and choose it as the chat's model.
Progress appears as status events, kept margins as citation events, whose places in the list are the answer's numbers.

It was written from Open WebUI's documentation and is tested with a stand-in for its event emitter. It has not been run
inside Open WebUI, which is not a dependency of this project. ``python examples/open_webui_pipe.py`` shows the events.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from wim_kernel import Answered, AnswerToken, Chunk, ChunkRead, Margin, WimError, WimKernel

Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Pipe:
    """The function's class, as Open WebUI expects it."""

    class Valves(BaseModel):
        """Settings in Open WebUI's admin panel."""

        MODEL: str = Field(
            "embedded", description="A model's name on the Hugging Face Hub, a folder, or `embedded`"
        )
        SERVER_URL: str = Field(
            "", description="An OpenAI-compatible server that has MODEL; empty: in this process"
        )
        CHUNK_TOKENS: int = Field(400, gt=0, description="Most tokens of a chunk")
        ANSWER_TOKENS: int = Field(256, gt=0, description="Most tokens of an answer")

    def __init__(self, kernel: WimKernel | None = None) -> None:
        self.valves = self.Valves()
        self._kernel = kernel
        self._loading = asyncio.Lock()

    async def on_valves_updated(self) -> None:
        """Load anew at the next question."""
        self._kernel = None

    async def pipe(
        self,
        body: dict[str, Any],
        __event_emitter__: Emitter | None = None,
        __files__: list[dict[str, Any]] | None = None,
        __task__: str | None = None,
    ) -> AsyncIterator[str]:
        """Answer the last message from the chat's files; yields the answer's pieces."""
        if __task__ is not None:  # a title, tags, a search query: nothing to read for
            return

        async def emit(kind: str, **data: Any) -> None:
            if __event_emitter__ is not None:
                await __event_emitter__({"type": kind, "data": data})

        chunks = [_chunk(item) for item in __files__ or () if _text(item).strip()]
        question = _question(body)
        if not chunks or not question.strip():
            yield "Attach a file with text to this chat, and ask a question about it."
            return
        try:
            async with self._loading:
                if self._kernel is None:
                    await emit("status", description="Loading the model", done=False)
                    self._kernel = await asyncio.to_thread(self._load)
            reading = self._kernel.read(chunks, chunk_tokens=self.valves.CHUNK_TOKENS)
            options: dict[str, Any] = {"answer_tokens": self.valves.ANSWER_TOKENS, "citations": True}
            margins: dict[int, Margin] = {}
            # When the user presses stop, Open WebUI cancels this generator, and the kernel stops within a token.
            async with aclosing(reading.astream(question, **options)) as events:
                async for event in events:
                    match event:
                        case ChunkRead(index, total):
                            await emit(
                                "status", description=f"Read passage {index + 1} of {total}", done=False
                            )
                        case AnswerToken(text):
                            for place, margin in enumerate(_cited(margins), 1):
                                await emit("citation", **_citation(place, margin))
                            margins = {}  # they are shown once
                            yield text
                        case Answered(result):
                            kept = sum(margin.is_used for margin in result.margins)
                            found = f"Answered from {kept} of {len(result.margins)} passages"
                            await emit("status", description=found, done=True)
                        case _ if hasattr(event, "margin"):
                            margins[event.margin.index] = event.margin
        except WimError as error:
            await emit("status", description="Not answered", done=True)
            yield str(error)

    def _load(self) -> WimKernel:
        if self.valves.SERVER_URL:
            return WimKernel.from_server(self.valves.SERVER_URL, model=self.valves.MODEL)
        return WimKernel.from_pretrained(self.valves.MODEL)


def _text(item: dict[str, Any]) -> str:
    """The text that Open WebUI extracted from a file."""
    file = item.get("file") or {}
    return str((file.get("data") or {}).get("content") or "")


def _chunk(item: dict[str, Any]) -> Chunk:
    name = str(item.get("name") or (item.get("file") or {}).get("filename") or "file")
    return Chunk.of(_text(item), name, 0, {"title": name})


def _question(body: dict[str, Any]) -> str:
    """The text of the last message of the user."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return ""


def _cited(margins: dict[int, Margin]) -> list[Margin]:
    """The margins in the answer's prompt, in the order of their numbers."""
    return [
        margins[index] for index in sorted(margins) if margins[index].kept and margins[index].text.strip()
    ]


def _citation(number: int, margin: Margin) -> dict[str, Any]:
    """A citation event's data. Open WebUI shows citations of one source as one, so each margin is a source."""
    span = margin.chunk.spans[0] if margin.chunk.spans else None
    title = str(margin.chunk.metadata.get("title") or "file")
    name = f"{title}, passage {margin.index + 1}"
    metadata = {
        "source": name,
        "name": name,
        "date_accessed": datetime.now(timezone.utc).isoformat(),
        "relevance": margin.relevance,
        "start": None if span is None else span.start,
        "end": None if span is None else margin.chunk.spans[-1].end,
    }
    return {"document": [margin.text], "metadata": [metadata], "source": {"id": str(number), "name": name}}


async def main() -> None:
    """Show the events of one question, as Open WebUI would get them."""

    async def show(event: dict[str, Any]) -> None:
        data = event["data"]
        print(f"{event['type']}:", data.get("description") or (data["source"]["name"], data["document"]))

    path = Path(__file__).parent / "data" / "alice-chapters-3-4.txt"
    file = {"type": "file", "name": path.name, "file": {"data": {"content": path.read_text()[:6000]}}}
    body = {"messages": [{"role": "user", "content": "What did the Mouse say is the driest thing it knows?"}]}
    pipe = Pipe()
    pipe.valves.ANSWER_TOKENS = 48
    async for piece in pipe.pipe(body, show, [file]):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    asyncio.run(main())
