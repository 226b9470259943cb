"""A document that is being read: the algorithm of Writing in the Margins, and the ways to call it (arXiv 2408.14906).

`Reading._inquire` is the algorithm: read a chunk, find out what it holds for the question, note it, keep or drop the
note, answer. What each of these does is in ``wim_kernel/run``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from wim_kernel.cache.disk import as_path, write
from wim_kernel.cache.lease import Lease
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common.concurrency import afinish, finish, iterate_in_thread
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import ContextOverflowError, ReadingFileError, ServerError
from wim_kernel.common.events import Answered, Event
from wim_kernel.common.margins import Margin, Usage, WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.given_margins import MarginsLike, chunks_in, margins_in
from wim_kernel.run.options import Options
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.request import Overflow, Request, Work, parse_request
from wim_kernel.run.run import Run
from wim_kernel.text.prompts import Frame


class Reading(Shared):
    """A document that is being read. Its prefill outlives a question; any number of callers may ask at once.

    `wim_kernel.WimKernel.read` makes readings.

    Attributes:
        kernel: the `wim_kernel.WimKernel` that made it.
        engine: runs the model.
        frame: what stands around the document.
        chunks: the document's chunks, in order.
        document: the same with their tokens and passages.
        tokens: how many tokens the document has, what stands between chunks included.
        overflow: what becomes of a document that does not fit the window.
    """

    def __init__(
        self,
        cache: PrefixCache,
        document: EncodedDocument,
        frame: Frame,
        calibration: Callable[[], Calibration],
        overflow: Overflow = "volumes",
    ) -> None:
        self.kernel: Any = None  # set by the kernel, which imports this module
        self.engine: AnyEngine = cache.engine
        self.frame = frame
        self.overflow = overflow
        self.chunks = document.chunks
        self.document = document
        self.tokens = document.tokens.tokens(len(document.chunks))
        self._cache = cache
        self._calibration = calibration
        self._through: dict[str, int] = {}  # how far the last questions' margins were read
        window, total = self.engine.window, document.tokens.total
        if overflow == "error" and window is not None and total >= window:
            advice = "Read a shorter document, or use a model with a longer window."
            fits = window - len(document.tokens.head) - 1
            raise ContextOverflowError("The document", self.tokens, fits, advice)

    def tokens_through(self, chunks: int) -> int:
        """How many tokens the first ``chunks`` chunks have, what stands between them included."""
        return self.document.tokens.tokens(chunks)

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def _inquire(self, request: Request) -> Work[list[WimResult]]:
        """Read each chunk once, branch margins at its end, keep or drop them, answer. Yields after every step."""
        with self._run(request) as run:
            yield from self._read_and_note(run)
            return (yield from self._answer(run))

    def _read_and_note(self, run: Run) -> Work[list[Margin]]:
        """Step one: chunks and their margins, until the document ends or the caller has enough."""
        for index in range(len(self.chunks)):
            yield from run.read_chunk(index)
            if run.margins_are_due():
                yield from run.write_margins()
                if (yield from run.has_enough()):
                    break
        yield from run.revise()
        yield from run.look_again()
        yield from run.write_best()
        self._came_to(run)
        return run.states[0].in_order

    def _answer(self, run: Run) -> Work[list[WimResult]]:
        """Step two: one branch a question behind the last chunk read, all decoded together."""
        yield from run.write_answers()
        results = run.results()
        for position, result in enumerate(results):
            yield Answered(result, position)
        return results

    # -- parts of it --------------------------------------------------------------------------------------------------

    def _note(self, request: Request) -> Work[list[Margin]]:
        with self._run(request) as run:
            margins = yield from self._read_and_note(run)
            yield run.noted()
            return margins

    def _answer_from(
        self, request: Request, given: MarginsLike, chunks_read: int | None
    ) -> Work[list[WimResult]]:
        margins = margins_in(given, self.chunks)
        if chunks_read is None:
            chunks_read = self._through.get(request.questions[0], len(self.chunks))
        chunks_read = chunks_in(chunks_read, len(self.chunks))
        with self._run(request) as run:
            run.take(margins)
            yield from run.read_through(chunks_read)
            return (yield from self._answer(run))

    def _score(self, request: Request) -> Work[list[tuple[Evidence, float]]]:
        if request.settings.judges_notes:
            raise ValueError("A second call judges written notes: ask for margins instead.")
        with self._run(request) as run:
            return (yield from run.score())

    def _prefill(self) -> Work[Usage]:
        with self._run(parse_request([""], {"task": "summarise"})) as run:
            for index in range(len(self.chunks)):
                yield from run.read_chunk(index)
            return run.usage(0)

    def _came_to(self, run: Run) -> None:
        for state in run.states:
            self._through.pop(state.question, None)
            self._through[state.question] = run.read
        for question in list(self._through)[:-256]:
            self._through.pop(question, None)

    @contextmanager
    def _run(self, request: Request) -> Iterator[Run]:
        with closing(Run(self._cache, self.document, request, self.overflow, self._calibration)) as run:
            try:
                yield run
            except ServerError as error:
                error.margins_by_question, error.chunks_read = run.written, run.read
                raise

    # -- ways to call it ----------------------------------------------------------------------------------------------

    def ask(self, question: str = "", **options: Unpack[Options]) -> WimResult:
        """The answer to a question.

        Args:
            question: what is asked; may be empty with ``task="summarise"``.
            options: see `Options`.

        Raises:
            ContextOverflowError: if the document and the question do not fit the model's window.
        """
        return finish(self._inquire(parse_request([question], options)))[0]

    async def aask(self, question: str = "", **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop; so are all that begin with an ``a``."""
        return (await afinish(self._inquire(parse_request([question], options))))[0]

    def ask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """Answers to several questions: one prefill, all questions' branches decoded together. See `ask`."""
        return finish(self._inquire(parse_request(questions, options))) if questions else []

    async def aask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """See `ask_many`."""
        return await afinish(self._inquire(parse_request(questions, options))) if questions else []

    def stream(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Events as they happen; the last is `Answered` with the result. Closing it stops the work. See `ask`."""
        return _events(self._inquire(parse_request([question], options, stream=True)))

    def astream(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream`."""
        return _aevents(self._inquire(parse_request([question], options, stream=True)))

    def stream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> Generator[Event, None, None]:
        """See `ask_many` and `stream`: each event says which question it is for; one `Answered` each ends it."""
        return _events(self._inquire(parse_request(questions, options, stream=True)))

    def astream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """See `stream_many`."""
        return _aevents(self._inquire(parse_request(questions, options, stream=True)))

    def margins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """Step one alone: every margin, in chunk order, for a person to drop, edit or add to. See `ask`."""
        return finish(self._note(parse_request([question], options)))

    async def amargins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """See `margins`."""
        return await afinish(self._note(parse_request([question], options)))

    def stream_margins(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Step one alone, as events; the last is `MarginsDone`. See `margins`."""
        return _events(self._note(parse_request([question], options, stream=True)))

    def astream_margins(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream_margins`."""
        return _aevents(self._note(parse_request([question], options, stream=True)))

    def answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> WimResult:
        """Step two alone: the answer from margins as they are handed in; those with ``kept`` count.

        Args:
            question: what is asked.
            margins: as a person or program left them: `Margin`s, dicts as `Margin.to_dict` writes them, or strings,
                which are notes of one's own.
            chunks_read: how many chunks the answer stands on. By default those that this question's margins were read
                through to, or all if they were not written on this reading.
            options: see `Options`.

        Raises:
            MarginsError: for something that is no margin, or one of another document.
        """
        return finish(self._answer_from(parse_request([question], options), margins, chunks_read))[0]

    async def aanswer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> WimResult:
        """See `answer`."""
        return (await afinish(self._answer_from(parse_request([question], options), margins, chunks_read)))[0]

    def stream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> Generator[Event, None, None]:
        """Step two alone, as events. See `answer`."""
        return _events(
            self._answer_from(parse_request([question], options, stream=True), margins, chunks_read)
        )

    def astream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """See `stream_answer`."""
        return _aevents(
            self._answer_from(parse_request([question], options, stream=True), margins, chunks_read)
        )

    def evidence(self, question: str, **options: Unpack[Options]) -> list[Evidence]:
        """What relevance is computed from, for every chunk in order; nothing is written.

        Raises:
            ValueError: for ``relevance="second-call"``, which judges what is written.
        """
        return [evidence for evidence, _ in finish(self._score(parse_request([question], options)))]

    def relevance(self, question: str, **options: Unpack[Options]) -> list[float]:
        """Every chunk's relevance to a question, in order; nothing is written. See `evidence`."""
        return [relevance for _, relevance in finish(self._score(parse_request([question], options)))]

    def prefill(self) -> Usage:
        """Read the whole document now; otherwise asking reads as it goes."""
        return finish(self._prefill())

    async def aprefill(self) -> Usage:
        """See `prefill`."""
        return await afinish(self._prefill())

    def prompt_ids(self, of: Margin | WimResult) -> list[int]:
        """The tokens the model saw on a branch, from position 0 to where the note's or answer's own text begins.

        Raises:
            ValueError: for a margin that no branch of this reading wrote.
        """
        branch = of.branch
        if branch is not None and self.engine.shows_tokens:
            volume = self.document.tokens.part(range(branch.first_chunk, len(self.chunks)))
            if branch.digest == volume.digest(branch.prefix_tokens):
                return [*list(volume.ids())[: branch.prefix_tokens], *branch.suffix_ids]
        raise ValueError("No branch of this reading wrote this, so there are no tokens to show.")

    def save(self, path: str | Path) -> None:
        """Write the reading to a file, for `WimKernel.load`; what was not read yet is read first.

        The file is written whole or not at all, and what stands there before is replaced.

        Raises:
            ReadingFileError: if it cannot be written, or the document is longer than the window: ``cache_dir=`` keeps
                volumes.
        """
        path, tokens, window = as_path(path, "path"), self.document.tokens, self.engine.window
        if window is not None and tokens.total >= window:
            raise ReadingFileError(path, "the document is longer than the model's window")
        about = {
            "chunks": [chunk.to_dict() for chunk in self.chunks],
            "separator": self.document.separator,
        }
        with Lease(self._cache, tokens) as lease:
            for chunk in range(len(self.chunks)):
                for _ in lease.read(chunk):
                    pass
            packed = self.engine.pack(lease.prefix, tokens.total)
        write(path, tokens, packed, self.engine.identity(), about)

    def close(self) -> None:
        """Forget the prefill, unless it is in use. The reading stays good: it reads again when it is asked."""
        self._cache.forget(self.document.tokens)


def _events(steps: Work[Any]) -> Generator[Event, None, None]:
    """Only what there is to tell. Closing this closes the steps."""
    with closing(steps):
        for event in steps:
            if event is not None:
                yield event


async def _aevents(steps: Work[Any]) -> AsyncGenerator[Event, None]:
    async with aclosing(iterate_in_thread(steps)) as events:
        async for event in events:
            if event is not None:
                yield event
