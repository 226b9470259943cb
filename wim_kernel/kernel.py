"""`WimKernel`: a model with a prefix cache, which makes readings of documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Unpack

from wim_kernel.cache import disk
from wim_kernel.cache.entry import Budget
from wim_kernel.cache.folder import ReadingFolder
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.cache.volumes import SHARES, longest_chunk
from wim_kernel.common.chunk import Chunk
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import ChunkError, EmptyDocumentError, ReadingFileError
from wim_kernel.common.margins import WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.reading import Reading
from wim_kernel.run.document import EncodedDocument
from wim_kernel.run.options import Options
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.calibrator import Calibrator
from wim_kernel.run.relevance.examples import Example
from wim_kernel.run.request import Overflow, parse_request
from wim_kernel.text.chunks import as_chunks, drop_overlaps, join_adjacent, split_chunk
from wim_kernel.text.prompts import Frame
from wim_kernel.text.run_text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wim_kernel.engines.local.engine import LocalEngine

Document = str | Iterable[str | Chunk]


class WimKernel(Shared):
    """A model with a prefix cache.

    Args:
        model: a transformers causal LM. Other code may use it between calls and, from other threads, during them.
        tokenizer: the model's tokenizer.
        chunk_tokens: most tokens of a chunk when a long text is split; by default a sixteenth of the window, at least
            256 and at most 4,096 (the paper's).
        budget_bytes: most bytes of keys and values of cached readings in the model's memory; by default a share of the
            free memory. Least recently used readings are evicted, never one in use.
        host_budget_bytes: most bytes of readings evicted from a GPU to the host's memory; by default half of the free
            memory.
        cache_dir: a folder for readings evicted from the host's memory. Several processes may share it, and readings
            in it are found after a restart; `PrefixCache.flush` writes all readings to it.
        disk_budget_bytes: most bytes of the folder; by default half of the disk's free space.
        frame: the frame around every document.
        calibration: the calibration of the model's relevance signals. ``"auto"`` uses a shipped or cached one, or
            measures it once, at the first question (see `calibrate`); ``"off"`` scores by shared words alone.
        engine: the engine that runs the model; by default one in this process.
        engine_options: options of `LocalEngine`: ``window``, ``cache_mode``, ``attention``.

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
        self.readings = PrefixCache(self.engine, budget)
        self._head = tuple(self.engine.head(self.frame.system, self.frame.document))
        self._calibrator = Calibrator(self.engine, self.frame, calibration)

    def find_calibration(self) -> Calibration:
        """The calibration of the model's relevance signals: shipped, cached, or measured now on shipped examples."""
        return self._calibrator.find()

    def calibrate(
        self, examples: Iterable[Example | Mapping[str, Any]] | None = None, *, seconds: float = 120.0
    ) -> Calibration:
        """Measure a new calibration of the model's relevance signals, and use it from now on.

        Args:
            examples: documents and questions with known evidence, as `wim_kernel.run.relevance.examples.Example` or as
                mappings ``{"passages": [...], "questions": [{"question": ..., "evidence": [...]}]}``; by default the
                examples that come with the package.
            seconds: about how long passages may be read alone.

        Returns:
            The calibration, for the ``calibration`` argument of another kernel on the same model.

        Raises:
            ValueError: if the examples are malformed, or the engine does not see the model's attention.
        """
        return self._calibrator.calibrate(examples, seconds)

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
        """Load a model and make a kernel on it.

        Args:
            name: ``"embedded"``, a hub id or a path; with ``gguf_file=`` a hub id or a path of a GGUF model.
            chunk_tokens: see `WimKernel`.
            budget_bytes: see `WimKernel`.
            host_budget_bytes: see `WimKernel`.
            cache_dir: see `WimKernel`.
            disk_budget_bytes: see `WimKernel`.
            frame: see `WimKernel`.
            calibration: see `WimKernel`.
            loading: arguments of `wim_kernel.engines.loading.load_model` (``gguf_file``, ``dtype``, ``device``, ...)
                and options of `LocalEngine` (``window``, ``cache_mode``, ``attention``).

        Raises:
            ModelNotFoundError: if the model cannot be found.
        """
        from wim_kernel.engines.local.engine import LocalEngine  # imports torch, which only this engine needs

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
        calibration: Calibration | Literal["auto", "off"] = "auto",
        **options: Any,
    ) -> WimKernel:
        """Make a kernel on servers with an OpenAI-compatible API and a prefix cache: vLLM, SGLang, llama.cpp, ...

        Args:
            base_url: the API's base URL, with ``/v1``; several URLs for servers that run the same model.
            model: the model's name on the server; by default the only one that it serves.
            chunk_tokens: see `WimKernel`.
            frame: see `WimKernel`.
            calibration: see `WimKernel`; for example one that was found for the same model in this process.
            options: options of `wim_kernel.engines.server.engine.ServerEngine`: ``tokenizer``, ``family``, ``window``,
                ``api_key``, ``concurrency``, ``timeout``, ...

        Raises:
            ImportError: without the package's extra ``server``.
            ServerError: if no server can be reached.

        Example:
            >>> kernel = WimKernel.from_server("http://localhost:8000/v1")  # doctest: +SKIP
        """
        try:
            from wim_kernel.engines.server.engine import ServerEngine
        except ImportError as error:
            raise ImportError("Servers need the extra: pip install 'wim-integrations[server]'.") from error
        engine = ServerEngine(base_url, model, **options)
        return cls(engine=engine, chunk_tokens=chunk_tokens, frame=frame, calibration=calibration)

    @classmethod
    def from_chat_model(
        cls, llm: Any, *, chunk_tokens: int | None = None, frame: Frame | None = None, **options: Any
    ) -> WimKernel:
        """Make a kernel on a chat model: a LangChain `BaseChatModel`, a LlamaIndex `LLM`, or a `ChatBackend`.

        The provider's prompt cache plays the reading's part. Tokens are estimated, since the model's tokenizer is not
        here: see `wim_kernel.engines.chat.codec`.

        Args:
            llm: the chat model.
            chunk_tokens: see `WimKernel`.
            frame: see `WimKernel`.
            options: options of `wim_kernel.engines.chat.engine.ChatEngine`: ``provider``, ``window``,
                ``max_concurrency``, ``max_calls``, ``first_look``, ``structured``.

        Raises:
            TypeError: for something that is no chat model.

        Example:
            >>> kernel = WimKernel.from_chat_model(ChatOpenAI(model="gpt-5.6"))  # doctest: +SKIP
        """
        from wim_kernel.engines.chat.adapters import as_backend
        from wim_kernel.engines.chat.engine import ChatEngine

        return cls(engine=ChatEngine(as_backend(llm), **options), chunk_tokens=chunk_tokens, frame=frame)

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model."""
        model: PreTrainedModel = _loaded(self.engine, "model")
        return model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The loaded tokenizer."""
        tokenizer: PreTrainedTokenizerBase = _loaded(self.engine, "tokenizer")
        return tokenizer

    def count_tokens(self, text: str) -> int:
        """How many tokens a run of document text has."""
        return len(self.engine.encode(Text(text)))

    def read(
        self,
        document: Document,
        *,
        chunk_tokens: int | None = None,
        join_small: bool = False,
        separator: str | None = None,
        overflow: Overflow = "volumes",
    ) -> Reading:
        """Make a reading of a document. The model does not run yet.

        Args:
            document: one long string, which is split at sentence ends; or chunks, as strings or `Chunk`, in order.
                Text that consecutive chunks of one source share is read once.
            chunk_tokens: most tokens of a chunk. Given chunks are split only if this is given.
            join_small: whether to join adjacent chunks that fit ``chunk_tokens`` together.
            separator: the text between chunks that do not continue each other; by default the frame's.
            overflow: what to do with a document that does not fit the model's window: ``"volumes"`` reads it one window
                after another (chunks of more than about half a window are then split), ``"error"`` raises.

        Raises:
            EmptyDocumentError: if the document has no text.
            ContextOverflowError: with ``overflow="error"``, if the document alone is longer than the window.
        """
        longest = chunk_tokens or self.chunk_tokens
        chunks = drop_overlaps(as_chunks(document))
        if isinstance(document, str) or chunk_tokens is not None:
            chunks = [
                part for chunk in chunks for part in split_chunk(chunk, longest, self.count_tokens) or [chunk]
            ]
        between = self.frame.separator if separator is None else separator
        if join_small:
            chunks = join_adjacent(chunks, longest, self.count_tokens, separator=between)
        if not any(chunk.text.strip() for chunk in chunks):
            raise EmptyDocumentError
        encoded = EncodedDocument.encode(self.engine, self._head, chunks, between)
        return self._reading(self._split_for_volumes(encoded, overflow), overflow)

    def _reading(self, document: EncodedDocument, overflow: Overflow = "volumes") -> Reading:
        reading = Reading(self.readings, document, self.frame, self.find_calibration, overflow)
        reading.kernel = self
        return reading

    def _split_for_volumes(self, document: EncodedDocument, overflow: Overflow) -> EncodedDocument:
        """Split the chunks of a document longer than the window so that each fits a volume."""
        window, tokens = self.engine.window, document.tokens
        if window is None or overflow == "error" or tokens.total <= window - window // SHARES[0]:
            return document
        longest = longest_chunk(window, len(tokens.head))
        if all(tokens.size(chunk) <= longest for chunk in range(len(tokens))):
            return document
        room = max(16, longest - self.count_tokens(document.separator) - 1)
        parts = (
            split_chunk(chunk, room, self.count_tokens) if tokens.size(index) > longest else [chunk]
            for index, chunk in enumerate(document.chunks)
        )
        chunks = list(itertools.chain.from_iterable(parts))
        return EncodedDocument.encode(self.engine, self._head, chunks, document.separator)

    def load(self, path: str | Path) -> Reading:
        """Load a saved reading. The model does not run again on its document.

        Args:
            path: a file that `Reading.save` wrote.

        Raises:
            ReadingFileError: if the file is damaged, or was made with another model, other weights, another data type,
                tokenizer or frame; the message says which.
            MemoryBudgetError: if the reading alone needs more than the budget.
        """
        path = disk.as_path(path, "path")
        saved = disk.read(path, self.engine.identity())
        if not saved.about:
            raise ReadingFileError(path, "it belongs to a cache and does not hold the document")
        try:
            chunks = [Chunk.from_dict(chunk) for chunk in saved.about["chunks"]]
            document = EncodedDocument.encode(self.engine, self._head, chunks, saved.about["separator"])
        except (KeyError, TypeError, AttributeError, ChunkError) as error:
            raise ReadingFileError(path, f"its document is not what `save` writes: {error!r}") from error
        shared = document.tokens.common_chunks(saved.document)
        if shared < 0:
            raise ReadingFileError(path, "its chat template or frame is another")
        if shared < len(saved.document):
            raise ReadingFileError(path, "its tokenizer is another")
        self.readings.adopt(saved.document, saved.packed)
        return self._reading(document)

    def ask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Read a document and answer a question: short for ``kernel.read(document).ask(question)``."""
        return self.read(document).ask(question, **options)

    async def aask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop."""
        parse_request([question], options)  # raise for wrong options before the document is split
        return await (await in_thread(self.read, document)).aask(question, **options)


def _local_engine(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
) -> LocalEngine:
    if model is None or tokenizer is None:
        raise TypeError("WimKernel needs a model and its tokenizer, or an engine.")
    from wim_kernel.engines.local.engine import LocalEngine

    return LocalEngine(model, tokenizer, **options)


def _loaded(engine: AnyEngine, name: str) -> Any:
    """The model or the tokenizer that an engine of this process has loaded."""
    if not hasattr(engine, name):
        raise AttributeError("This kernel's model does not run in this process.")
    return getattr(engine, name)
