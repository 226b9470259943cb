"""The replacement for map-reduce chains of ``load_qa_chain`` and ``load_summarize_chain``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, create_model, model_validator

from wim_integrations.langchain.chat_model import Model
from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.prompts import PromptSet
from wim_integrations.langchain.requests import Request
from wim_integrations.langchain.runnable import WimRunnable
from wim_kernel import Answered, AnswerToken, Event

_ONLY_OUTPUTS = "return_only_outputs"
Configs = RunnableConfig | list[RunnableConfig] | None


class WimMapReduceChain(WimRunnable):
    """A map-reduce chain whose map step continues one shared prefix; see `create_wim_map_reduce_chain`."""

    documents_key: str | None = "input_documents"
    input_key: str = "input_documents"
    output_key: str = "output_text"
    return_intermediate_steps: bool = False
    map_variables: tuple[str, ...] = ()
    combine_variables: tuple[str, ...] = ()

    if TYPE_CHECKING:

        def __init__(self, *, kernel: Model, **fields: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, given: Any) -> Any:
        """Set ``documents_key`` from ``input_key``, the name in the replaced chains."""
        if not isinstance(given, dict):
            return given
        key = given.get("input_key") or given.get("documents_key") or "input_documents"
        return {**given, "input_key": key, "documents_key": key}

    @property
    def input_keys(self) -> list[str]:
        """The inputs' keys."""
        return [self.input_key]

    @property
    def output_keys(self) -> list[str]:
        """The outputs' keys, without the inputs, which are returned, too."""
        return [self.output_key, *(["intermediate_steps"] if self.return_intermediate_steps else [])]

    def invoke(  # type: ignore[override]  # the outputs' keys are configured
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs, the answer and, if configured, the intermediate steps; or only the outputs."""
        output: dict[str, Any] = self._select(super().invoke(input, config, **kwargs), return_only_outputs)
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
        output: dict[str, Any] = self._select(
            await super().ainvoke(input, config, **kwargs), return_only_outputs
        )
        return output

    def transform(
        self, input: Iterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Outputs]:
        """Like `stream`; the input may come in chunks."""
        only_outputs = kwargs.pop(_ONLY_OUTPUTS, False)
        for chunk in super().transform(input, config, **kwargs):
            yield self._select(chunk, only_outputs)

    async def atransform(
        self, input: AsyncIterator[Inputs], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Outputs, None]:
        """See `transform`."""
        only_outputs = kwargs.pop(_ONLY_OUTPUTS, False)
        async with aclosing(super().atransform(input, config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield self._select(chunk, only_outputs)

    def batch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Outputs for several inputs; questions about the same documents are answered in one run."""
        only_outputs = kwargs.pop(_ONLY_OUTPUTS, False)
        outputs = super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return [self._select(output, only_outputs) for output in outputs]

    async def abatch(
        self,
        inputs: list[Inputs],
        config: Configs = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """See `batch`."""
        only_outputs = kwargs.pop(_ONLY_OUTPUTS, False)
        outputs = await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return [self._select(output, only_outputs) for output in outputs]

    def _select(self, output: Any, return_only_outputs: bool) -> Any:
        if not return_only_outputs or not isinstance(output, Mapping):
            return output
        return AddableDict({name: output[name] for name in self.output_keys if name in output})

    def get_output_schema(self, config: Any = None) -> type[BaseModel]:
        """The outputs' fields, without the inputs."""
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
        """For each document, in order, its margins as one text; empty without a relevant margin."""
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
        names = self.output_keys if request.source is None else self.output_keys[1:]
        return AddableDict({name: output[name] for name in names})

    def _streamed(self) -> tuple[str, ...]:
        return (self.output_key,)
