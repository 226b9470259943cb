"""Writing in the Margins: read a document once, note what helps at every chunk boundary, answer (arXiv 2408.14906).

`Reading._inquire` is the algorithm. Everything else here is a way to call it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from wim_kernel import forks
from wim_kernel.asynchrony import afinish, finish, iterate_in_thread
from wim_kernel.call import Asked, Call, Overflow, Steps, asked
from wim_kernel.chunks import Chunk, as_chunks, contiguous, drop_overlaps, join_adjacent, split_chunk
from wim_kernel.copying import Shared
from wim_kernel.engines.base import AnyEngine, Text
from wim_kernel.engines.local.engine import LocalEngine
from wim_kernel.errors import (
    ChunkError,
    ContextOverflowError,
    EmptyDocumentError,
    ReadingFileError,
    ServerError,
)
from wim_kernel.events import Answered, Event
from wim_kernel.leases import prefix_digest
from wim_kernel.margins import Margin, Usage, WimResult
from wim_kernel.margins_in import MarginsLike, chunks_in, margins_in
from wim_kernel.prompts import Frame
from wim_kernel.readings import Budget, Readings
from wim_kernel.relevance.calibration import Calibration, keep, known
from wim_kernel.relevance.fitting import Example, calibrate, packaged
from wim_kernel.relevance.passages import DocumentPassages
from wim_kernel.relevance.scores import Evidence
from wim_kernel.settings import Options, settle
from wim_kernel.storage import ReadingFolder, as_path
from wim_kernel.storage import read as read_file
from wim_kernel.storage import write as write_file
from wim_kernel.volumes import SHARES, longest_chunk, volume_pieces
from wim_kernel.writing import question_lead

logger = logging.getLogger(__name__)

Document = str | Iterable[str | Chunk]


class WimKernel(Shared):
    """A model, and the readings it holds.

    Args:
        model: a transformers causal LM. It stays free for other use between calls and, from other threads, during them.
        tokenizer: its tokenizer.
        chunk_tokens: how long chunks are when a long text is split; by default a sixteenth of the window, at least 256
            and at most 4,096 (the paper's).
        budget_bytes: keys and values that live readings may take where the model is; by default a share of the memory
            that is free. Those used least recently make way, never one in use.
        host_budget_bytes: what readings that have to make way on a GPU may take in the host's memory; by default half
            of what is free.
        cache_dir: a folder for readings that have to make way there, too. Several processes may use it, and what is in
            it is found again after a restart; `Readings.flush` writes what is live.
        disk_budget_bytes: most that the folder may take; by default half of what is free on its disk.
        frame: what stands around every document.
        calibration: how the model's signals of relevance are read; ``"auto"`` takes what is known of the model, or
            finds it out at the first question, once (see `calibrate`); ``"off"`` takes shared words alone.
        engine: runs the model; by default in this process.
        engine_options: options of `LocalEngine`: ``window``, ``path``.

    Raises:
        UnsupportedModelError: if the model's results on branches differ from its plain forward pass.

    Example:
        >>> kernel = WimKernel.from_pretrained("embedded")  # doctest: +SKIP
        >>> kernel.ask("Who owned the ship?", open("log.txt").read()).answer  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        chunk_tokens: int | None = None,
        budget_bytes: int | None = None,
        host_budget_bytes: int | None = None,
        cache_dir: str | Path | None = None,
        disk_budget_bytes: int | None = None,
        frame: Frame | None = None,
        calibration: Calibration | Literal["auto", "off"] = "auto",
        engine: AnyEngine | None = None,
        **engine_options: Any,
    ) -> None:
        if engine is not None and (model is not None or tokenizer is not None or engine_options):
            raise TypeError("Give WimKernel an engine, or a model, a tokenizer and options of the engine.")
        self.engine: AnyEngine = engine or _local_engine(model, tokenizer, engine_options)
        self.frame = frame or Frame()
        self.chunk_tokens = chunk_tokens or min(4096, max(256, (self.engine.window or 65_536) // 16))
        folder = None
        if cache_dir is not None:
            folder = ReadingFolder(cache_dir, disk_budget_bytes)
        budget = Budget(
            self.engine.budget_bytes if budget_bytes is None else budget_bytes,
            self.engine.host_budget_bytes if host_budget_bytes is None else host_budget_bytes,
            folder,
        )
        self.readings = Readings(self.engine, budget)
        self._head = tuple(self.engine.head(self.frame.system, self.frame.document))
        self._calibration = calibration if isinstance(calibration, Calibration) else None
        self._may_calibrate = calibration == "auto"
        self._calibrating = threading.Lock()
        forks.register(self)

    def renew_after_fork(self) -> None:
        """A lock that another thread held at the fork is nobody's in the child."""
        self._calibrating = threading.Lock()

    def find_calibration(self) -> Calibration:
        """How the model's signals are read: known for it, kept from before, or found now on the package's examples."""
        with self._calibrating:
            if self._calibration is None:
                self._calibration = self._known_calibration()
        return self._calibration

    def _known_calibration(self) -> Calibration:
        engine = self.engine
        if not self._may_calibrate or not isinstance(engine, LocalEngine) or not engine.heads:
            return Calibration()
        if not engine.reads_text:
            return Calibration()  # random weights
        model = engine.fingerprint()
        found = known(model)
        if found is None:
            logger.info("Finding out how %s shows relevance: once, up to a minute.", engine.model_name)
            found = self._calibrated(packaged(), 45.0)
            keep(model, found)
        return found

    def calibrate(
        self, examples: Iterable[Example | Mapping[str, Any]] | None = None, *, seconds: float = 120.0
    ) -> Calibration:
        """Find anew how the model's signals are read, and use that from now on.

        Args:
            examples: documents and questions with known evidence, as `wim_kernel.relevance.fitting.Example` or as
                mappings ``{"passages": [...], "questions": [{"question": ..., "evidence": [...]}]}``; by default
                those that come with the package.
            seconds: about how long passages may be read alone.

        Returns:
            The calibration. Give it to another kernel on the same model as ``calibration=``.

        Raises:
            ValueError: if the examples are no such data, or the engine cannot see the model's attention.
        """
        given = (
            packaged()
            if examples is None
            else [item if isinstance(item, Example) else Example.from_dict(item) for item in examples]
        )
        if not self.engine.heads:
            raise ValueError(
                "This engine cannot see the model's attention, so there is nothing to calibrate."
            )
        found = self._calibrated(given, seconds)
        with self._calibrating:
            self._calibration = found
        return found

    def _calibrated(self, examples: Sequence[Example], seconds: float) -> Calibration:
        settings = settle({})
        return calibrate(
            self.engine, self.frame, lambda question: question_lead(question, settings)[0], examples, seconds
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str = "embedded",
        *,
        chunk_tokens: int | None = None,
        budget_bytes: int | None = None,
        host_budget_bytes: int | None = None,
        cache_dir: str | Path | None = None,
        disk_budget_bytes: int | None = None,
        frame: Frame | None = None,
        calibration: Calibration | Literal["auto", "off"] = "auto",
        **loading: Any,
    ) -> WimKernel:
        """A kernel on a model by name: ``"embedded"``, a hub id, a path, or either with ``gguf_file=``.

        Args:
            name: which model.
            chunk_tokens: see `WimKernel`.
            budget_bytes: see `WimKernel`.
            host_budget_bytes: see `WimKernel`.
            cache_dir: see `WimKernel`.
            disk_budget_bytes: see `WimKernel`.
            frame: see `WimKernel`.
            calibration: see `WimKernel`.
            loading: what `wim_kernel.engines.local.loading.load_model` takes (``gguf_file``, ``dtype``, ``device``,
                ...) and options of `LocalEngine` (``window``, ``path``, ``attention``).

        Raises:
            ModelNotFoundError: if there is no such model.
        """
        engine = LocalEngine.from_pretrained(name, **loading)
        return cls(
            engine=engine,
            chunk_tokens=chunk_tokens,
            budget_bytes=budget_bytes,
            host_budget_bytes=host_budget_bytes,
            cache_dir=cache_dir,
            disk_budget_bytes=disk_budget_bytes,
            frame=frame,
            calibration=calibration,
        )

    @classmethod
    def from_server(
        cls,
        base_url: str | Sequence[str],
        model: str | None = None,
        *,
        chunk_tokens: int | None = None,
        frame: Frame | None = None,
        **options: Any,
    ) -> WimKernel:
        """A kernel on servers that speak the OpenAI-compatible API and keep prefixes: vLLM, SGLang, llama.cpp, ...

        Args:
            base_url: of the API, with ``/v1``; several for servers that run the same model.
            model: its name there; by default the only one it serves.
            chunk_tokens: see `WimKernel`.
            frame: see `WimKernel`.
            options: of `wim_kernel.engines.server.engine.ServerEngine`: ``tokenizer``, ``family``, ``window``,
                ``api_key``, ``concurrency``, ``timeout``, ...

        Raises:
            ImportError: without the package's extra ``server``.
            ServerError: if none of the servers can be asked.

        Example:
            >>> kernel = WimKernel.from_server("http://localhost:8000/v1")  # doctest: +SKIP
        """
        try:
            from wim_kernel.engines.server.engine import ServerEngine
        except ImportError as error:
            raise ImportError("Servers need the extra: pip install 'wim-integrations[server]'.") from error
        return cls(engine=ServerEngine(base_url, model, **options), chunk_tokens=chunk_tokens, frame=frame)

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model."""
        return _local(self.engine).model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The loaded tokenizer."""
        return _local(self.engine).tokenizer

    def count_tokens(self, text: str) -> int:
        """How many tokens a run of document text takes."""
        return len(self.engine.encode(Text(text)))

    def _encode(
        self, chunks: Sequence[Chunk], separator: str
    ) -> tuple[list[tuple[int, ...]], list[list[int]]]:
        """Tokens of each chunk, with the separator in front where it does not go on in the text before it.

        Also the characters of each chunk's text at which its tokens begin, where the engine sees attention.
        """
        between = self.engine.encode(Text(separator, trusted=True))
        pieces, places, previous = [], [], None
        for chunk in chunks:
            apart = previous is not None and chunk.text and not contiguous(previous, chunk)
            if self.engine.heads:
                tokens, starts = self.engine.placed(chunk.text)
            else:
                tokens, starts = self.engine.encode(Text(chunk.text)), []
            pieces.append((*(between if apart else ()), *tokens))
            places.append(starts)
            previous = chunk if chunk.text else previous
        return pieces, places

    def read(
        self,
        document: Document,
        *,
        chunk_tokens: int | None = None,
        join_small: bool = False,
        separator: str | None = None,
        overflow: Overflow = "volumes",
    ) -> Reading:
        """A reading of a document. Computes nothing yet.

        Args:
            document: one long string, which is split at sentence ends; or chunks, as strings or `Chunk`, in order.
                Text that consecutive pieces of one source share is read once.
            chunk_tokens: longest chunk, in tokens. Given chunks are split only if this is given.
            join_small: join adjacent chunks while they fit ``chunk_tokens``.
            separator: what stands between chunks that are not one run of one source; by default the frame's.
            overflow: what becomes of a document that does not fit the model's window: ``"volumes"`` reads it one window
                after another (a chunk that takes more than about half a window is then split), ``"error"`` refuses.

        Raises:
            EmptyDocumentError: if there is no text.
            ContextOverflowError: with ``overflow="error"``, if the document alone is longer than the window.
        """
        longest = chunk_tokens or self.chunk_tokens
        chunks = drop_overlaps(as_chunks(document))
        if isinstance(document, str) or chunk_tokens is not None:
            chunks = [
                part for chunk in chunks for part in split_chunk(chunk, longest, self.count_tokens) or [chunk]
            ]
        if join_small:
            between = self.frame.separator if separator is None else separator
            chunks = join_adjacent(chunks, longest, self.count_tokens, separator=between)
        if not any(chunk.text.strip() for chunk in chunks):
            raise EmptyDocumentError
        return self._fitting_volumes(Reading(self, chunks, separator, overflow))

    def _fitting_volumes(self, reading: Reading) -> Reading:
        """The reading, or one of the same text whose chunks are split so that each fits a volume."""
        window, head, sizes = (
            self.engine.window,
            len(self._head),
            [len(piece) for piece in reading._pieces[1:]],
        )
        if (
            window is None
            or reading.overflow == "error"
            or head + reading.tokens <= window - window // SHARES[0]
        ):
            return reading
        longest = longest_chunk(window, head)
        if max(sizes) <= longest:
            return reading
        room = max(16, longest - self.count_tokens(reading._separator) - 1)
        parts = (
            split_chunk(chunk, room, self.count_tokens) if size > longest else [chunk]
            for chunk, size in zip(reading.chunks, sizes, strict=True)
        )
        return Reading(self, list(itertools.chain.from_iterable(parts)), reading._separator, reading.overflow)

    def load(self, path: str | Path) -> Reading:
        """A reading that was saved; nothing of it is run through the model again.

        Args:
            path: what `Reading.save` wrote.

        Raises:
            ReadingFileError: if it is damaged, or was made with another model, other weights, another type, tokenizer
                or frame; it says which.
            MemoryBudgetError: if it alone needs more than the budget.
        """
        path = as_path(path, "path")
        saved = read_file(path, self.engine.identity())
        if not saved.document:
            raise ReadingFileError(path, "it belongs to a cache and does not hold the document")
        try:
            chunks = [Chunk.from_dict(chunk) for chunk in saved.document["chunks"]]
            reading = Reading(self, chunks, saved.document["separator"])
        except (KeyError, TypeError, AttributeError, ChunkError) as error:
            raise ReadingFileError(path, f"its document is not what `save` writes: {error!r}") from error
        if reading._pieces[0] != saved.pieces[0]:
            raise ReadingFileError(path, "its chat template or frame is another")
        if reading._pieces[: len(saved.pieces)] != saved.pieces:
            raise ReadingFileError(path, "its tokenizer is another")
        self.readings.adopt(saved.pieces, saved.packed)
        return reading

    def ask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Read a document and answer: short for ``kernel.read(document).ask(question)``."""
        return self.read(document).ask(question, **options)

    async def aask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop."""
        ask = asked([question], options)

        def steps() -> Steps[list[WimResult]]:
            return (yield from self.read(document)._inquire(ask))

        return (await afinish(steps()))[0]


class Reading(Shared):
    """A document that is being read. Its prefill outlives a question; any number of callers may ask at once.

    Attributes:
        kernel: whose reading it is.
        chunks: the document's chunks, in order.
        tokens: how many tokens the document has, what stands between chunks included.
        overflow: what becomes of a document that does not fit the window.
    """

    def __init__(
        self,
        kernel: WimKernel,
        chunks: Sequence[Chunk],
        separator: str | None = None,
        overflow: Overflow = "volumes",
    ) -> None:
        self.kernel = kernel
        self.overflow = overflow
        self.chunks = tuple(chunks)
        self._separator = kernel.frame.separator if separator is None else separator
        pieces, starts = kernel._encode(self.chunks, self._separator)
        self._pieces = [kernel._head, *pieces]
        self.tokens = sum(map(len, self._pieces[1:]))
        sizes = [len(piece) for piece in pieces]
        self._passages = DocumentPassages(self.chunks, sizes, starts)
        if kernel.engine.heads:
            _ = self._passages.index  # every question will ask for it
        self._through: dict[str, int] = {}  # how far the last questions' margins were read
        window, head = kernel.engine.window, len(kernel._head)
        if overflow == "error" and window is not None and head + self.tokens >= window:
            advice = "Read a shorter document, or use a model with a longer window."
            raise ContextOverflowError("The document", self.tokens, window - head - 1, advice)

    def tokens_through(self, chunks: int) -> int:
        """How many tokens the first ``chunks`` chunks have, what stands between them included."""
        return sum(map(len, self._pieces[1 : chunks + 1]))

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def _inquire(self, ask: Asked) -> Steps[list[WimResult]]:
        """Read each chunk once, branch margins at its end, keep or drop them, answer. Yields after every step."""
        with self._call(ask) as call:
            yield from self._read_and_note(call)
            return (yield from self._answer(call))

    def _read_and_note(self, call: Call) -> Steps[list[Margin]]:
        """Step one: chunks and their margins, until the document ends or the caller has enough."""
        for index in range(len(self.chunks)):
            yield from call.read_chunk(index)
            if call.margins_are_due():
                yield from call.write_margins()
                if (yield from call.has_enough()):
                    break
        yield from call.revise()
        yield from call.look_again()
        yield from call.write_best()
        self._came_to(call)
        return call.inquiries[0].in_order

    def _answer(self, call: Call) -> Steps[list[WimResult]]:
        """Step two: one branch a question behind the last chunk read, all decoded together."""
        yield from call.write_answers()
        results = call.results()
        for position, result in enumerate(results):
            yield Answered(result, position)
        return results

    # -- parts of it --------------------------------------------------------------------------------------------------

    def _note(self, ask: Asked) -> Steps[list[Margin]]:
        with self._call(ask) as call:
            margins = yield from self._read_and_note(call)
            yield call.noted()
            return margins

    def _answer_from(self, ask: Asked, given: MarginsLike, chunks_read: int | None) -> Steps[list[WimResult]]:
        margins = margins_in(given, self.chunks)
        if chunks_read is None:
            chunks_read = self._through.get(ask.questions[0], len(self.chunks))
        chunks_read = chunks_in(chunks_read, len(self.chunks))
        with self._call(ask) as call:
            call.take(margins)
            yield from call.read_through(chunks_read)
            return (yield from self._answer(call))

    def _score(self, ask: Asked) -> Steps[list[tuple[Evidence, float]]]:
        if ask.settings.asks == "judgement":
            raise ValueError("A second call judges written notes: ask for margins instead.")
        with self._call(ask) as call:
            return (yield from call.score())

    def _prefill(self) -> Steps[Usage]:
        with self._call(asked([""], {"task": "summarise"})) as call:
            for index in range(len(self.chunks)):
                yield from call.read_chunk(index)
            return call.usage(0)

    def _came_to(self, call: Call) -> None:
        for inquiry in call.inquiries:
            self._through.pop(inquiry.question, None)
            self._through[inquiry.question] = call.read
        for question in list(self._through)[:-256]:
            self._through.pop(question, None)

    @contextmanager
    def _call(self, ask: Asked) -> Iterator[Call]:
        kernel = self.kernel
        with closing(
            Call(
                kernel.readings,
                self.chunks,
                self._pieces,
                ask,
                self.overflow,
                self._passages,
                kernel.find_calibration,
            )
        ) as call:
            try:
                yield call
            except ServerError as error:
                error.margins_by_question, error.chunks_read = call.written, call.read
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
        return finish(self._inquire(asked([question], options)))[0]

    async def aask(self, question: str = "", **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop; so are all that begin with an ``a``."""
        return (await afinish(self._inquire(asked([question], options))))[0]

    def ask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """Answers to several questions: one prefill, all questions' branches decoded together. See `ask`."""
        return finish(self._inquire(asked(questions, options))) if questions else []

    async def aask_many(self, questions: Sequence[str], **options: Unpack[Options]) -> list[WimResult]:
        """See `ask_many`."""
        return await afinish(self._inquire(asked(questions, options))) if questions else []

    def stream(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Events as they happen; the last is `Answered` with the result. Closing it stops the work. See `ask`."""
        return _events(self._inquire(asked([question], options, stream=True)))

    def astream(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream`."""
        return _aevents(self._inquire(asked([question], options, stream=True)))

    def stream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> Generator[Event, None, None]:
        """See `ask_many` and `stream`: each event says which question it is for; one `Answered` each ends it."""
        return _events(self._inquire(asked(questions, options, stream=True)))

    def astream_many(
        self, questions: Sequence[str], **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """See `stream_many`."""
        return _aevents(self._inquire(asked(questions, options, stream=True)))

    def margins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """Step one alone: every margin, in chunk order, for a person to drop, edit or add to. See `ask`."""
        return finish(self._note(asked([question], options)))

    async def amargins(self, question: str = "", **options: Unpack[Options]) -> list[Margin]:
        """See `margins`."""
        return await afinish(self._note(asked([question], options)))

    def stream_margins(self, question: str = "", **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Step one alone, as events; the last is `MarginsDone`. See `margins`."""
        return _events(self._note(asked([question], options, stream=True)))

    def astream_margins(self, question: str = "", **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """See `stream_margins`."""
        return _aevents(self._note(asked([question], options, stream=True)))

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
        return finish(self._answer_from(asked([question], options), margins, chunks_read))[0]

    async def aanswer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> WimResult:
        """See `answer`."""
        return (await afinish(self._answer_from(asked([question], options), margins, chunks_read)))[0]

    def stream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> Generator[Event, None, None]:
        """Step two alone, as events. See `answer`."""
        return _events(self._answer_from(asked([question], options, stream=True), margins, chunks_read))

    def astream_answer(
        self,
        question: str,
        margins: MarginsLike,
        *,
        chunks_read: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """See `stream_answer`."""
        return _aevents(self._answer_from(asked([question], options, stream=True), margins, chunks_read))

    def evidence(self, question: str, **options: Unpack[Options]) -> list[Evidence]:
        """What relevance is computed from, for every chunk in order; nothing is written.

        Raises:
            ValueError: for ``relevance="second-call"``, which judges what is written.
        """
        return [evidence for evidence, _ in finish(self._score(asked([question], options)))]

    def relevance(self, question: str, **options: Unpack[Options]) -> list[float]:
        """Every chunk's relevance to a question, in order; nothing is written. See `evidence`."""
        return [relevance for _, relevance in finish(self._score(asked([question], options)))]

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
        if branch is not None and self.kernel.engine.shows_tokens:
            pieces = volume_pieces(self._pieces, range(branch.first_chunk, len(self.chunks)))
            if branch.digest == prefix_digest(pieces, branch.prefix_tokens):
                prefix = [token for piece in pieces for token in piece][: branch.prefix_tokens]
                return [*prefix, *branch.suffix_ids]
        raise ValueError("No branch of this reading wrote this, so there are no tokens to show.")

    def save(self, path: str | Path) -> None:
        """Write the reading to a file, for `WimKernel.load`; what was not read yet is read first.

        The file is written whole or not at all, and what stands there before is replaced.

        Raises:
            ReadingFileError: if it cannot be written, or the document is longer than the window: ``cache_dir=`` keeps
                volumes.
        """
        path, window = as_path(path, "path"), self.kernel.engine.window
        if window is not None and len(self.kernel._head) + self.tokens >= window:
            raise ReadingFileError(path, "the document is longer than the model's window")
        document = {"chunks": [chunk.to_dict() for chunk in self.chunks], "separator": self._separator}
        readings, engine = self.kernel.readings, self.kernel.engine
        with closing(readings.hold(self._pieces)) as lease:
            for piece in range(1, len(self._pieces)):
                for _ in lease.read(piece):
                    pass
            packed = engine.pack(lease.prefix, lease.end(len(self.chunks)))
        write_file(path, self._pieces, packed, engine.identity(), document)

    def close(self) -> None:
        """Forget the prefill, unless it is in use. The reading stays good: it reads again when it is asked."""
        self.kernel.readings.forget(self._pieces)


def _local_engine(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
) -> LocalEngine:
    if model is None or tokenizer is None:
        raise TypeError("WimKernel needs a model and its tokenizer, or an engine.")
    return LocalEngine(model, tokenizer, **options)


def _local(engine: AnyEngine) -> LocalEngine:
    if not isinstance(engine, LocalEngine):
        raise AttributeError("This kernel's model does not run in this process.")
    return engine


def _events(steps: Steps[Any]) -> Generator[Event, None, None]:
    """Only what there is to tell. Closing this closes the steps."""
    with closing(steps):
        for event in steps:
            if event is not None:
                yield event


async def _aevents(steps: Steps[Any]) -> AsyncGenerator[Event, None]:
    async with aclosing(iterate_in_thread(steps)) as events:
        async for event in events:
            if event is not None:
                yield event
