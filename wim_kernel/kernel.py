"""`WimKernel`: a model with a prefix cache, which makes readings of documents."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from typing_extensions import Unpack

from wim_kernel.cache import disk
from wim_kernel.cache.entry import Budget
from wim_kernel.cache.folder import ReadingFolder
from wim_kernel.cache.prefix_cache import PrefixCache
from wim_kernel.common.chunk import Chunk
from wim_kernel.common.concurrency import in_thread
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import EmptyDocumentError
from wim_kernel.common.margins import WimResult
from wim_kernel.engines.base import AnyEngine
from wim_kernel.reading import Reading
from wim_kernel.run.document import EncodedDocument, saved_document, split_for_volumes
from wim_kernel.run.kernel_options import KernelOptions, ModelOptions, PretrainedOptions
from wim_kernel.run.options import Options
from wim_kernel.run.relevance.calibration import Calibration
from wim_kernel.run.relevance.calibrator import Calibrator
from wim_kernel.run.relevance.examples import Example
from wim_kernel.run.request import Overflow, parse_request
from wim_kernel.text.chunks import as_chunks, drop_overlaps, join_adjacent, split_chunk
from wim_kernel.text.prompts import Frame
from wim_kernel.text.run_text import Text

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wim_kernel.engines.local.engine import LocalEngine

Document = str | Iterable[str | Chunk]


class WimKernel(Shared):
    """A model with a prefix cache.

    Args:
        model: a transformers causal LM, also with adapters around it, or compiled. Other code may use it between calls
            and, from other threads, during them.
        tokenizer: the model's tokenizer.
        engine: the engine that runs the model; by default one in this process.
        options: see `KernelOptions`; without ``engine`` also those of `LocalEngine`, see `EngineOptions`.

    Raises:
        UnsupportedModelError: if the model's results on branches differ from its plain forward pass.

    Example:
        >>> kernel = WimKernel.from_pretrained("embedded")  # doctest: +SKIP
        >>> kernel.ask("Who owned the ship?", open("log.txt").read()).answer  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel | Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        engine: AnyEngine | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        own, engine_options = _split(options)
        if engine is not None and (model is not None or tokenizer is not None or engine_options):
            raise TypeError("Give WimKernel an engine, or a model, a tokenizer and options of the engine.")
        self.engine: AnyEngine = engine or _local_engine(model, tokenizer, engine_options)
        self.frame = own.get("frame") or Frame()
        window = self.engine.window or 65_536
        self.chunk_tokens = own.get("chunk_tokens") or min(4096, max(256, window // 16))
        self.cache = PrefixCache(self.engine, _budget(self.engine, own))
        self._head = tuple(self.engine.head(self.frame.system, self.frame.document))
        self._calibrator = Calibrator(self.engine, self.frame, own.get("calibration", "auto"))

    @property
    def readings(self) -> PrefixCache:
        """The former name of ``cache``."""
        warnings.warn("The attribute readings is called cache.", DeprecationWarning, stacklevel=2)
        return self.cache

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
    def from_pretrained(cls, name: str = "embedded", **options: Unpack[PretrainedOptions]) -> WimKernel:
        """Load a model and make a kernel on it.

        Args:
            name: ``"embedded"``, a hub id or a path; with ``gguf_file=`` a hub id or a path of a GGUF model.
            options: see `KernelOptions`, `EngineOptions` and `LoadingOptions`.

        Raises:
            ModelNotFoundError: if the model cannot be found.
        """
        from wim_kernel.engines.local.engine import LocalEngine  # imports torch, which only this engine needs

        own, loading = _split(options)
        return cls(engine=LocalEngine.from_pretrained(name, **loading), **own)

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
            chunk_tokens: see `KernelOptions`.
            frame: see `KernelOptions`.
            calibration: see `KernelOptions`; for example one that was found for the same model in this process.
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
            llm: the chat model, or its name for LangChain's ``init_chat_model``, such as ``"openai:gpt-5.6"``, for
                which the extra ``chat-model`` and the provider's package are needed.
            chunk_tokens: see `KernelOptions`.
            frame: see `KernelOptions`.
            options: options of `wim_kernel.engines.chat.engine.ChatEngine`: ``provider``, ``window``,
                ``max_concurrency``, ``max_calls``, ``first_look``, ``structured``.

        Raises:
            ModelNotFoundError: if a named chat model cannot be made, because a package or a key is missing.
            TypeError: for something that is no chat model.

        Example:
            >>> kernel = WimKernel.from_chat_model(ChatOpenAI(model="gpt-5.6"))  # doctest: +SKIP
        """
        from wim_kernel.engines.chat.adapters import as_backend
        from wim_kernel.engines.chat.engine import ChatEngine

        return cls(engine=ChatEngine(as_backend(llm), **options), chunk_tokens=chunk_tokens, frame=frame)

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model, without what was around it."""
        return cast("PreTrainedModel", _loaded(self.engine, "model"))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The loaded tokenizer."""
        return cast("PreTrainedTokenizerBase", _loaded(self.engine, "tokenizer"))

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
        if overflow == "volumes":
            encoded = split_for_volumes(self.engine, encoded)
        return Reading(self, encoded, overflow)

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
        document = saved_document(self.engine, self._head, path, saved)
        self.cache.adopt(saved.document, saved.packed)
        return Reading(self, document)

    def ask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Read a document and answer a question: short for ``kernel.read(document).ask(question)``."""
        return self.read(document).ask(question, **options)

    async def aask(self, question: str, document: Document, **options: Unpack[Options]) -> WimResult:
        """Like `ask`, without blocking the event loop."""
        parse_request([question], options)  # raise for wrong options before the document is split
        return await (await in_thread(self.read, document)).aask(question, **options)


def _split(options: Mapping[str, Any]) -> tuple[KernelOptions, dict[str, Any]]:
    """The kernel's own options, and the others."""
    others = dict(options)
    own = {name: others.pop(name) for name in KernelOptions.__annotations__ if name in others}
    return cast(KernelOptions, own), others


def _budget(engine: AnyEngine, options: KernelOptions) -> Budget:
    """The budgets that the options give, and the engine's where they give none."""
    in_engine, on_host = options.get("budget_bytes"), options.get("host_budget_bytes")
    folder = options.get("cache_dir")
    return Budget(
        engine.budget_bytes if in_engine is None else in_engine,
        engine.host_budget_bytes if on_host is None else on_host,
        None if folder is None else ReadingFolder(folder, options.get("disk_budget_bytes")),
    )


def _local_engine(
    model: PreTrainedModel | Module | None, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
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
