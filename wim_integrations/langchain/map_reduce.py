"""A replacement for map-reduce chains, as ``load_qa_chain`` and ``load_summarize_chain`` make them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, create_model, model_validator

from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.prompts import PromptSet
from wim_integrations.langchain.requests import Request
from wim_integrations.langchain.runnable import WimRunnable
from wim_kernel import Answered, AnswerToken, Event, WimKernel

_NEW = "return_only_outputs"
Configs = RunnableConfig | list[RunnableConfig] | None


class WimMapReduceChain(WimRunnable):
    """A map-reduce chain whose map step reads on instead of starting afresh; see `create_wim_map_reduce_chain`."""

    documents_key: str | None = "input_documents"
    input_key: str = "input_documents"
    output_key: str = "output_text"
    return_intermediate_steps: bool = False
    map_variables: tuple[str, ...] = ()
    combine_variables: tuple[str, ...] = ()

    if TYPE_CHECKING:

        def __init__(self, *, kernel: WimKernel, **fields: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, given: Any) -> Any:
        """``input_key``, as the replaced chains call it, is ``documents_key``."""
        if not isinstance(given, dict):
            return given
        key = given.get("input_key") or given.get("documents_key") or "input_documents"
        return {**given, "input_key": key, "documents_key": key}

    @property
    def input_keys(self) -> list[str]:
        """Names of the inputs."""
        return [self.input_key]

    @property
    def output_keys(self) -> list[str]:
        """Names of the outputs, beside the inputs, which are echoed."""
        return [self.output_key, *(["intermediate_steps"] if self.return_intermediate_steps else [])]

    def invoke(  # type: ignore[override]  # its outputs are called as they are configured
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs, the answer and, if wanted, the intermediate steps; or only what is new."""
        output: dict[str, Any] = self._wanted(super().invoke(input, config, **kwargs), return_only_outputs)
        return output

    async def ainvoke(  # type: ignore[override]
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `invoke`."""
        output: dict[str, Any] = self._wanted(
            await super().ainvoke(input, config, **kwargs), return_only_outputs
        )
        return output

    def transform(
        self, input: Iterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Outputs]:
        """See `stream`; the input may come in parts."""
        new = kwargs.pop(_NEW, False)
        for chunk in super().transform(input, config, **kwargs):
            yield self._wanted(chunk, new)

    async def atransform(
        self, input: AsyncIterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """See `transform`."""
        new = kwargs.pop(_NEW, False)
        async with aclosing(super().atransform(input, config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield self._wanted(chunk, new)

    def batch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Outputs for several inputs; questions about the same documents are answered together."""
        new = kwargs.pop(_NEW, False)
        outputs = super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return [self._wanted(output, new) for output in outputs]

    async def abatch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """See `batch`."""
        new = kwargs.pop(_NEW, False)
        outputs = await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return [self._wanted(output, new) for output in outputs]

    def _wanted(self, output: Any, return_only_outputs: bool) -> Any:
        if not return_only_outputs or not isinstance(output, Mapping):
            return output
        return AddableDict({name: output[name] for name in self.output_keys if name in output})

    def get_output_schema(self, config: Any = None) -> type[BaseModel]:
        """The outputs beside the echoed inputs."""
        kinds: dict[str, Any] = {self.output_key: (str, ...)}
        if self.return_intermediate_steps:
            kinds["intermediate_steps"] = (list[str], ...)
        return create_model(self.get_name("Output"), **kinds)

    def _as_mapping(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        return {self.input_key: inputs}

    def _prompts(self, documents_key: str | None = None) -> PromptSet:
        found = super()._prompts(documents_key)
        return replace(
            found,
            documents_keys=[*found.documents_keys, *self.map_variables],
            notes_keys=[*found.notes_keys, *self.combine_variables],
        )

    def _output(self, request: Request, last: Event | None) -> Outputs:
        answer = last.result.answer if isinstance(last, Answered) else self.empty_response
        output = {**request.inputs, self.output_key: answer}
        if self.return_intermediate_steps:
            output["intermediate_steps"] = self._steps(request, last)
        return output

    def _steps(self, request: Request, last: Event | None) -> list[str]:
        """One text a document, in their order: its margins; empty where it says nothing that helps."""
        if request.source is None or not isinstance(last, Answered):
            return []
        steps: list[list[str]] = [[] for _ in request.source.documents]
        for margin in last.result.margins:
            if margin.text.strip():
                steps[request.source.document_of(margin)].append(margin.text.strip())
        return ["\n".join(texts) for texts in steps]

    def _first_chunk(self, request: Request) -> Outputs:
        return AddableDict({**request.inputs, self.output_key: ""})

    def _chunk(self, request: Request, event: Event) -> Outputs | None:
        return AddableDict({self.output_key: event.text}) if isinstance(event, AnswerToken) else None

    def _last_chunk(self, request: Request, last: Event | None) -> Outputs:
        output = self._output(request, last)
        wanted = self.output_keys if request.source is None else self.output_keys[1:]
        return AddableDict({name: output[name] for name in wanted})

    def _streamed(self) -> tuple[str, ...]:
        return (self.output_key,)
