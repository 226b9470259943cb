"""One person's work: their documents, the question being answered, and the task that answers it. No user interface."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Literal

from wim_integrations.page.turn import Turn
from wim_kernel import (
    Answered,
    AnswerToken,
    Chunk,
    ChunkRead,
    Event,
    MarginRevised,
    MarginsDone,
    MarginWritten,
    Options,
    Reading,
    WimError,
    WimKernel,
)
from wim_kernel.common.concurrency import in_thread

logger = logging.getLogger(__name__)

Phase = Literal["idle", "loading", "reading", "answering"]
Change = Event | Literal["documents", "turn", "answer", "phase"]
SET_HERE = ("stop_when", "stop_after")
"""Options that the page's own button replaces."""


class Session:
    """One person's documents and questions; everything here runs in the event loop, and the model in threads.

    Args:
        kernel: the kernel, which all sessions share.
        options: options of every question.
        changed: called with each event of the kernel, and with the name of what else changed.
        failed: called with an error's message.

    Attributes:
        sources: the documents, in reading order.
        reading: their reading; None without documents.
        turn: the question being answered, or answered last; None before the first.
        earlier: the questions before it.
        phase: what is going on.
    """

    def __init__(
        self,
        kernel: WimKernel,
        options: Options,
        changed: Callable[[Change], None],
        failed: Callable[[str], None],
    ) -> None:
        self.kernel = kernel
        self.options = options
        self.sources: list[Chunk] = []
        self.reading: Reading | None = None
        self.turn: Turn | None = None
        self.earlier: list[Turn] = []
        self.phase: Phase = "idle"
        self._changed = changed
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a task is running."""
        return self._task is not None and not self._task.done()

    # -- what a person can do -----------------------------------------------------------------------------------------

    def open(self, sources: Sequence[Chunk], reading: Reading | None = None) -> None:
        """Read these documents from now on, in place of those before; the questions so far become earlier ones.

        Args:
            sources: the documents, in reading order.
            reading: their reading, if there is one already.
        """
        self.stop()
        self.sources = list(sources)
        self.reading = reading
        self._shelve()
        if reading is not None or not self.sources:
            self._changed("documents")
        else:
            self._start(self._load())

    def ask(self, question: str) -> None:
        """Write margins for a question, then answer it; does nothing while another one is being answered."""
        summarises = self.options.get("task") == "summarise"
        if self.is_busy or self.reading is None or not (question.strip() or summarises):
            return
        self._shelve()
        self.turn = Turn(question.strip())
        self._start(self._ask(self.reading, self.turn))

    def answer_now(self) -> None:
        """Stop reading, and answer from the margins written so far, behind the last chunk that has one."""
        if self.phase == "reading" and self.reading is not None and self.turn is not None:
            self.stop()
            self._start(self._answer(self.reading, self.turn))

    def answer_again(self) -> None:
        """Answer the question again, from the margins as the person wants them now."""
        if not self.is_busy and self.reading is not None and self.turn is not None:
            self._start(self._answer(self.reading, self.turn))

    def stop(self) -> None:
        """Stop the work within a step of the model. What was written so far stays."""
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Stop for good: nobody is told of anything any more."""
        self._changed = self._failed = _ignore
        self.stop()

    def judge(self, index: int, *, kept: bool) -> None:
        """Keep or drop a margin."""
        if self.turn is not None:
            self.turn.judge(index, kept=kept)
            self._judged(index)

    def edit(self, index: int, text: str) -> None:
        """Replace a margin's text."""
        if self.turn is not None:
            self.turn.edit(index, text)
            self._judged(index)

    # -- the work -----------------------------------------------------------------------------------------------------

    def _judged(self, index: int) -> None:
        assert self.turn is not None
        self._changed(MarginRevised(self.turn.margin(index)))
        self._changed("phase")

    def _shelve(self) -> None:
        """Put the last question with the earlier ones."""
        if self.turn is not None and self.turn.answer:
            self.earlier.append(self.turn)
        self.turn = None

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work, self._task))
        self._task = task
        task.add_done_callback(lambda _: self._ended(task, work))

    def _ended(self, task: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        work.close()  # if it was cancelled before it began
        if task is self._task:  # otherwise other work follows
            self._enter("idle")

    async def _guarded(self, work: Coroutine[Any, Any, None], before: asyncio.Task[None] | None) -> None:
        """Do some work when the work before has ended, and report its errors."""
        try:
            if before is not None:
                await asyncio.wait([before])
            await work
        except (WimError, ValueError, TypeError) as error:
            self._failed(str(error))
        except Exception as error:
            logger.exception("The page's work failed.")
            self._failed(f"It failed: {error!r}")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._changed("phase")

    async def _load(self) -> None:
        self._enter("loading")
        self.reading = await in_thread(self._read, list(self.sources))
        self._changed("documents")

    def _read(self, sources: list[Chunk]) -> Reading:
        return self.kernel.read(sources, chunk_tokens=self.kernel.chunk_tokens)

    async def _ask(self, reading: Reading, turn: Turn) -> None:
        self._changed("turn")
        self._enter("reading")
        begun = time.perf_counter()
        # A stop rule has margins written batch by batch, also where all chunks are cached: somebody watches.
        options: Options = {**self.options, "stop_when": _never}
        async with aclosing(reading.astream_margins(turn.question, **options)) as events:
            async for event in events:
                turn.seconds = time.perf_counter() - begun
                self._take(turn, event)
        await self._answer(reading, turn)

    async def _answer(self, reading: Reading, turn: Turn) -> None:
        turn.begin_answer()
        self._changed("answer")
        self._enter("answering")
        begun = time.perf_counter()
        options: Options = {"citations": True, **self.options}
        stream = reading.astream_answer(
            turn.question, turn.margins, chunks_read=turn.chunks_before_answer, **options
        )
        async with aclosing(stream) as events:
            async for event in events:
                self._take(turn, event)
        turn.seconds += time.perf_counter() - begun
        self._changed("answer")

    def _take(self, turn: Turn, event: Event) -> None:
        """Record an event of the kernel, and pass it on."""
        match event:
            case ChunkRead() if self.phase == "reading":
                turn.read(event)
            case MarginWritten(margin=margin) | MarginRevised(margin=margin):
                turn.written[margin.index] = margin
                event = MarginRevised(turn.margin(margin.index))
            case MarginsDone():
                turn.chunks_read, turn.usage, turn.is_complete = event.chunks_read, event.usage, True
            case AnswerToken(text=text):
                turn.answer += text
            case Answered(result=result):
                turn.answer, turn.result = result.answer, result
                turn.sources = tuple(margin for margin in result.margins if margin.is_used)
                turn.pay(result.usage)
        self._changed(event)


def _never(_: object) -> bool:
    """A rule that never stops."""
    return False


def _ignore(_: object) -> None:
    """Tell nobody."""
