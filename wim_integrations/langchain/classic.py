"""The replacement for map-reduce chains as a langchain-classic chain, for code that is built on those chains."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from langchain_classic.chains.combine_documents.base import BaseCombineDocumentsChain
from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    CallbackManager,
    CallbackManagerForChainRun,
    Callbacks,
    StdOutCallbackHandler,
)
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    merge_configs,
)

from wim_integrations.langchain.map_reduce import Configs, WimMapReduceChain
from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.requests import Request, joined_input, someone_watches
from wim_kernel import Event, MissingInputError
from wim_kernel.common.relay import alast_of, last_of


class WimMapReduceDocumentsChain(WimMapReduceChain, BaseCombineDocumentsChain):
    """A `WimMapReduceChain` that is a langchain-classic `BaseCombineDocumentsChain`.

    `AnalyzeDocumentChain`, `RetrievalQA`, `ConversationalRetrievalChain` and similar chains accept it. It has the
    fields of a chain, too: ``memory``, ``callbacks``, ``verbose``, ``tags``, ``metadata``.
    """

    # -- as langchain-classic calls it --------------------------------------------------------------------------------

    def combine_docs(
        self, docs: list[Document], callbacks: Callbacks = None, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Answer from documents; returns the answer and, if configured, the intermediate steps.

        Args:
            docs: the documents.
            callbacks: callbacks for chunks, margins and the answer, as children of their run.
            kwargs: the question, and further variables of the prompts.
        """
        config = _config(callbacks)
        inputs = {**kwargs, self.input_key: docs}
        return self._split_answer(self._combine(inputs, get_callback_manager_for_config(config), config))

    async def acombine_docs(
        self, docs: list[Document], callbacks: Callbacks = None, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """See `combine_docs`."""
        config = _config(callbacks)
        inputs = {**kwargs, self.input_key: docs}
        manager = get_async_callback_manager_for_config(config)
        return self._split_answer(await self._acombine(inputs, manager, config))

    def _call(
        self, inputs: dict[str, Any], run_manager: CallbackManagerForChainRun | None = None
    ) -> dict[str, Any]:
        run = run_manager or CallbackManagerForChainRun.get_noop_manager()
        return self._combine(inputs, run.get_child(), ensure_config())

    async def _acall(
        self, inputs: dict[str, Any], run_manager: AsyncCallbackManagerForChainRun | None = None
    ) -> dict[str, Any]:
        run = run_manager or AsyncCallbackManagerForChainRun.get_noop_manager()
        return await self._acombine(inputs, run.get_child(), ensure_config())

    def _combine(self, inputs: Inputs, manager: CallbackManager, config: RunnableConfig) -> dict[str, Any]:
        request, live = self._request(inputs), someone_watches(manager, config)
        return self._new_outputs(request, last_of(self._relayed(request, manager, config, live=live)))

    async def _acombine(
        self, inputs: Inputs, manager: AsyncCallbackManager, config: RunnableConfig
    ) -> dict[str, Any]:
        request, live = await self._arequest(inputs), someone_watches(manager, config)
        events = self._arelayed(request, manager, config, live=live)
        return self._new_outputs(request, await alast_of(events))

    def _new_outputs(self, request: Request, last: Event | None) -> dict[str, Any]:
        output = self._output(request, last)
        return {name: output[name] for name in self.output_keys}

    def _split_answer(self, output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return output.pop(self.output_key), output

    def _validate_inputs(self, inputs: Any) -> None:
        if self.input_key not in inputs:
            raise MissingInputError(
                f"The input has {sorted(map(str, inputs))}, and nothing called {self.input_key}."
            )

    @property
    def _chain_type(self) -> str:
        return "wim_map_reduce"

    # -- as LangChain calls it ----------------------------------------------------------------------------------------

    def invoke(  # type: ignore[override]
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        include_run_info: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs, the answer and, if configured, the intermediate steps; or only the outputs."""
        chain = self._with(kwargs) if kwargs else self
        return BaseCombineDocumentsChain.invoke(
            chain,
            _as_dict(input),
            config,
            return_only_outputs=return_only_outputs,
            include_run_info=include_run_info,
        )

    async def ainvoke(  # type: ignore[override]
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        include_run_info: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `invoke`."""
        chain = self._with(kwargs) if kwargs else self
        return await BaseCombineDocumentsChain.ainvoke(
            chain,
            _as_dict(input),
            config,
            return_only_outputs=return_only_outputs,
            include_run_info=include_run_info,
        )

    def transform(
        self, input: Iterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Outputs]:
        """Like `stream`; the input may come in chunks."""
        kwargs.pop("include_run_info", None)  # a stream's run is known from its callbacks
        yield from super().transform(input, self._with_own(config), **kwargs)

    async def atransform(
        self, input: AsyncIterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """See `transform`."""
        kwargs.pop("include_run_info", None)
        async with aclosing(super().atransform(input, self._with_own(config), **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def batch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Outputs for several inputs, in shared runs; one by one with a memory, which each input loads and saves."""
        kwargs["return_exceptions"] = return_exceptions
        if self.memory is not None:
            return Runnable.batch(self, inputs, config, **kwargs)
        return super().batch(inputs, self._with_own_each(config), **kwargs)

    async def abatch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """See `batch`."""
        kwargs["return_exceptions"] = return_exceptions
        if self.memory is not None:
            return await Runnable.abatch(self, inputs, config, **kwargs)
        return await super().abatch(inputs, self._with_own_each(config), **kwargs)

    def _transform(
        self, inputs: Iterator[Inputs], run_manager: CallbackManagerForChainRun, config: RunnableConfig
    ) -> Iterator[Outputs]:
        output: dict[str, Any] = {}
        given = self.prep_inputs(_as_dict(joined_input(list(inputs))))
        for chunk in super()._transform(iter([given]), run_manager, config):
            _add(output, chunk)
            yield chunk
        self.prep_outputs(given, {name: output[name] for name in self.output_keys})

    async def _atransform(
        self,
        inputs: AsyncIterator[Inputs],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
    ) -> AsyncIterator[Outputs]:
        parts = [part async for part in inputs]
        output: dict[str, Any] = {}
        given = await self.aprep_inputs(_as_dict(joined_input(parts)))
        async for chunk in super()._atransform(_once(given), run_manager, config):
            _add(output, chunk)
            yield chunk
        await self.aprep_outputs(given, {name: output[name] for name in self.output_keys})

    def _with_own(self, config: RunnableConfig | None) -> RunnableConfig:
        """A config with the chain's own callbacks, tags and metadata."""
        own = RunnableConfig(tags=self.tags or [], metadata=self.metadata or {})
        if self.callbacks is not None:
            own["callbacks"] = self.callbacks
        printing = RunnableConfig(callbacks=[StdOutCallbackHandler()]) if self.verbose else None
        return merge_configs(own, printing, config)

    def _with_own_each(self, config: Configs) -> Configs:
        if isinstance(config, list):
            return [self._with_own(item) for item in config]
        return self._with_own(config)


def _config(callbacks: Callbacks) -> RunnableConfig:
    """The surrounding run's config with the given callbacks."""
    return ensure_config(None if callbacks is None else {"callbacks": callbacks})


def _as_dict(inputs: Any) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _add(output: dict[str, Any], chunk: Outputs) -> None:
    """Add a stream's chunk to the output so far."""
    for name, value in chunk.items():
        output[name] = output[name] + value if name in output and isinstance(value, str) else value


async def _once(item: Inputs) -> AsyncIterator[Inputs]:
    yield item
