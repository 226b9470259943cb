"""A document being read: the algorithm of Writing in the Margins (arXiv 2408.14906), and the ways to call it.

`Reading._ask` is the algorithm: read a chunk, score it, note it, keep or drop the note, answer. Its steps are in
``wim_kernel/run``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from typing_extensions import Unpack

from wim_kernel.cache import disk
from wim_kernel.cache.lease import Lease
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common.concurrency import afinish, finish
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import ContextOverflowError, ReadingFileError, ServerError
from wim_kernel.common.events import Answered
from wim_kernel.common.margins import Margin, Usage, WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.run.calls import ReadingCalls
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.estimate import Estimate, estimate
from wim_kernel.run.given_margins import MarginsLike, chunks_in, margins_in
from wim_kernel.run.options import Options
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.scores import Evidence
from wim_kernel.run.request import Overflow, Request, Work, parse_request
from wim_kernel.run.run import Run
from wim_kernel.text.prompts import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REMEMBERED_QUESTIONS = 256  # whose number of chunks read is kept for `Reading.answer`


class Kernel(Protocol):
    """What a reading knows of the `wim_kernel.WimKernel` that made it, which imports this module."""

    engine: AnyEngine
    cache: PrefixCache
    frame: Frame

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The loaded tokenizer."""

    def find_calibration(self) -> Calibration:
        """The calibration of the model's relevance signals."""


class Reading(Shared, ReadingCalls):
    """A document being read, made by `wim_kernel.WimKernel.read`.

    The document's prefill stays cached between questions. Several threads may call a reading at once.

    Attributes:
        kernel: the `wim_kernel.WimKernel` that made the reading.
        engine: the engine that runs the model.
        frame: the frame around the document.
        chunks: the document's chunks, in order.
        document: the chunks with their token ids and passages.
        tokens: how many tokens the document has, separators included.
        overflow: what to do with a document that does not fit the window.
    """

    def __init__(self, kernel: Kernel, document: EncodedDocument, overflow: Overflow = "volumes") -> None:
        self.kernel = kernel
        self.engine = kernel.engine
        self.frame = kernel.frame
        self.overflow = overflow
        self.chunks = document.chunks
        self.document = document
        self.tokens = document.tokens.tokens(len(document.chunks))
        self._cache = kernel.cache
        self._chunks_read: dict[str, int] = {}  # by question: how many chunks its margins cover
        window, total = self.engine.window, document.tokens.total
        if overflow == "error" and window is not None and total >= window:
            advice = "Read a shorter document, or use a model with a longer window."
            fits = window - len(document.tokens.head) - 1
            raise ContextOverflowError("The document", self.tokens, fits, advice)

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def _ask(self, request: Request) -> Work[list[WimResult]]:
        """Writing in the Margins (section 3): write margins while reading, then answer from the kept ones."""
        with self._run(request) as run:
            yield from self._write_margins(run)
            return (yield from self._write_answers(run))

    def _write_margins(self, run: Run) -> Work[list[Margin]]:
        """Step one: read each chunk once, and branch at its end to score it and to note it if it is relevant."""
        for index in range(len(self.chunks)):
            yield from run.read_chunk(index)  # prefill: shared by all questions, and cached for later ones
            if run.margins_are_due():  # not after every chunk: branches decode faster in batches
                yield from run.score_and_note()  # score each chunk; write a note, keep or drop it
                if (yield from run.has_enough()):  # stop_when=, stop_after=
                    break
        yield from run.revise_margins()  # scores are relative to the best chunk, which is known only now
        yield from run.search_again()  # rounds=
        yield from run.note_top_k()  # top_k=
        self._remember_chunks_read(run)
        return run.states[0].in_order

    def _write_answers(self, run: Run) -> Work[list[WimResult]]:
        """Step two: one branch for each question behind the chunks read, with the kept margins in its prompt."""
        yield from run.answer()
        results = run.results()
        for position, result in enumerate(results):
            yield Answered(result, position)
        return results

    # -- parts of the algorithm ---------------------------------------------------------------------------------------

    def _ask_margins(self, request: Request) -> Work[list[Margin]]:
        """Step one alone."""
        with self._run(request) as run:
            margins = yield from self._write_margins(run)
            yield run.margins_done()
            return margins

    def _ask_from_margins(
        self, request: Request, given: MarginsLike, chunks_read: int | None
    ) -> Work[list[WimResult]]:
        """Step two alone, from given margins; chunks that are not cached are read again."""
        margins = margins_in(given, self.chunks, question=request.questions[0])
        if chunks_read is None:
            chunks_read = self._chunks_read.get(request.questions[0], len(self.chunks))
        chunks_read = chunks_in(chunks_read, len(self.chunks))
        with self._run(request) as run:
            run.use_margins(margins)
            yield from run.read_through(chunks_read)
            return (yield from self._write_answers(run))

    def _score(self, request: Request) -> Work[list[tuple[Evidence, float]]]:
        if request.settings.judges_notes:
            raise ValueError("A second call judges written notes: ask for margins instead.")
        with self._run(request) as run:
            return (yield from run.score_all())

    def _prefill(self) -> Work[Usage]:
        with self._run(parse_request([""], {"task": "summarise"})) as run:
            for index in range(len(self.chunks)):
                yield from run.read_chunk(index)
                yield from run.settle()
            return run.usage(0)

    def _remember_chunks_read(self, run: Run) -> None:
        for state in run.states:
            self._chunks_read.pop(state.question, None)
            self._chunks_read[state.question] = run.chunks_read
        for question in list(self._chunks_read)[:-REMEMBERED_QUESTIONS]:
            self._chunks_read.pop(question, None)

    @contextmanager
    def _run(self, request: Request) -> Iterator[Run]:
        """A run that is closed at the end; an error of a server carries the margins written before it."""
        with closing(
            Run(self._cache, self.document, request, self.overflow, self.kernel.find_calibration)
        ) as run:
            try:
                yield run
            except ServerError as error:
                error.margins_by_question, error.chunks_read = run.margins_by_question, run.chunks_read
                raise

    # -- what else it can do -------------------------------------------------------------------------------------------

    def tokens_through(self, chunks: int) -> int:
        """How many tokens the first ``chunks`` chunks have, separators included."""
        return self.document.tokens.tokens(chunks)

    def estimate(self, question: str = "", **options: Unpack[Options]) -> Estimate:
        """What a question will cost with a chat model, in tokens by kind; no request is made.

        Raises:
            ValueError: for a model that is no chat model, or a relevance other than ``"rating"`` and a callable.
        """
        with self._run(parse_request([question], options)) as run:
            return estimate(run)

    def prefill(self) -> Usage:
        """Prefill the whole document now; without this, the first question prefills it.

        With a chat model this does nothing: the first question's requests write the provider's cache.
        """
        return finish(self._prefill())

    async def aprefill(self) -> Usage:
        """See `prefill`."""
        return await afinish(self._prefill())

    def prompt_ids(self, of: Margin | WimResult) -> list[int]:
        """The prompt of a branch as token ids: everything the model saw before the note's or answer's first token.

        Raises:
            ValueError: for a margin or result that no branch of this reading wrote.
        """
        branch = of.branch
        if branch is not None and self.engine.shows_tokens:
            volume = self.document.tokens.part(range(branch.first_chunk, len(self.chunks)))
            if branch.digest == volume.digest(branch.prefix_tokens):
                return [*list(volume.ids())[: branch.prefix_tokens], *branch.suffix_ids]
        raise ValueError("No branch of this reading wrote this, so there are no tokens to show.")

    def save(self, path: str | Path) -> None:
        """Write the reading to a file, for `WimKernel.load`. Chunks that were not read yet are read first.

        The file is written atomically and replaces a file of that name.

        Raises:
            ReadingFileError: if the file cannot be written, or if the document is longer than the window (a
                ``cache_dir`` keeps volumes).
        """
        path, tokens, window = disk.as_path(path, "path"), self.document.tokens, self.engine.window
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
        disk.write(path, tokens, packed, self.engine.identity(), about)

    def close(self) -> None:
        """Evict the document from the cache, unless it is in use. The reading stays usable, and prefills again."""
        self._cache.forget(self.document.tokens)
