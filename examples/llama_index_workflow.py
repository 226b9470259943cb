"""A workflow that reads a long document, streams its margins, and answers from those that a person keeps."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

from wim_integrations.llama_index import WimMargin, WimProgress
from wim_kernel import ChunkRead, MarginRevised, MarginsDone, MarginWritten, WimKernel


class Question(StartEvent):
    """What to find out."""

    question: str


class MarginsToJudge(InputRequiredEvent):
    """All margins, for a person: `Margin.to_dict` of each, and how much of the document they cover."""

    question: str
    margins: list[dict[str, Any]]
    chunks_read: int


class Judged(HumanResponseEvent):
    """The margins as the person left them."""

    question: str
    margins: list[dict[str, Any]]
    chunks_read: int


class ReadWithAPerson(Workflow):
    """Reads, asks a person about the margins, and answers. The events between the steps are plain data."""

    def __init__(self, kernel: WimKernel, text: str, chunk_tokens: int = 400, **options: Any) -> None:
        super().__init__(timeout=None)  # people take their time
        self.reading = kernel.read(text, chunk_tokens=chunk_tokens)
        self.options = options

    @step
    async def read(self, ctx: Context, asked: Question) -> MarginsToJudge:
        """Read the document once, and stream each margin as soon as it is written."""
        question = asked.question
        stream = self.reading.astream_margins(question, **self.options)
        async with aclosing(stream) as events:  # a cancelled run stops reading at once
            async for event in events:
                match event:
                    case ChunkRead(tokens=tokens, total_tokens=total):
                        ctx.write_event_to_stream(
                            WimProgress(query_str=question, tokens=tokens, total_tokens=total)
                        )
                    case MarginWritten(margin) | MarginRevised(margin):
                        revised = isinstance(event, MarginRevised)
                        ctx.write_event_to_stream(
                            WimMargin(query_str=question, margin=margin.to_dict(), revised=revised)
                        )
                    case MarginsDone(margins, chunks_read=chunks_read):
                        found = [margin.to_dict() for margin in margins]
        return MarginsToJudge(question=question, margins=found, chunks_read=chunks_read)

    @step
    async def answer(self, judged: Judged) -> StopEvent:
        """Answer from what the person left; the document is not read again."""
        result = await self.reading.aanswer(
            judged.question, judged.margins, chunks_read=judged.chunks_read, **self.options
        )
        return StopEvent(result=result)


def judge(shown: MarginsToJudge) -> Judged:
    """The person: keeps one margin, and says why."""
    margins = [{**margin, "kept": "driest" in margin["text"]} for margin in shown.margins]
    for margin in margins:
        margin["note"] = "this is the one" if margin["kept"] else ""
    return Judged(question=shown.question, margins=margins, chunks_read=shown.chunks_read)


async def main() -> None:
    """Run the workflow and be its person."""
    text = (Path(__file__).parent / "data" / "alice-chapters-3-4.txt").read_text()[:3500]
    kernel = WimKernel.from_pretrained("embedded")
    workflow = ReadWithAPerson(kernel, text, answer_tokens=48, citations=True)
    handler = workflow.run(start_event=Question(question="What is the driest thing the Mouse knows?"))
    async for event in handler.stream_events():
        if isinstance(event, WimProgress):
            print(f"read {event.tokens} of {event.total_tokens} tokens", flush=True)
        elif isinstance(event, WimMargin) and event.margin["kept"]:
            print(f"[{event.margin['relevance']:.2f}] {' '.join(event.margin['text'].split())}", flush=True)
        elif isinstance(event, MarginsToJudge):
            handler.ctx.send_event(judge(event))
    result = await handler
    print("\nanswer:", result.answer.strip())
    for citation in result.citations:
        print(f"  characters {citation.source_start} to {citation.source_end}: {citation.quote!r}")
    print("document tokens read again for it:", result.usage.prefill_tokens)


if __name__ == "__main__":
    asyncio.run(main())
