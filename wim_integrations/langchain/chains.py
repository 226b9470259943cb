"""Drop-in replacements: for `create_stuff_documents_chain`, and for map-reduce chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, create_model

from wim_integrations.langchain.base import Inputs, Outputs, Request
from wim_integrations.langchain.prompts import PromptLike, PromptSet
from wim_integrations.langchain.runnable import WimRunnable
from wim_kernel import Answered, AnswerToken, Event, WimKernel

NOTHING_FOUND = "No documents were found that could answer this."


def create_wim_documents_chain(
    kernel: WimKernel,
    prompt: BasePromptTemplate[Any] | None = None,
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[Any] | None = None,
    document_separator: str | None = None,
    document_variable_name: str = "context",
    **options: Any,
) -> Runnable[dict[str, Any], Any]:
    """A chain from a question and documents to the answer's text, in the place of `create_stuff_documents_chain`.

    Args:
        kernel: reads and answers.
        prompt: asks for the answer; its variable for the documents stands for "the document above", since they are read
            before any prompt; variables beyond that and the question are inputs. Where no input is a question, what
            the prompt says is.
        output_parser: what is made of the answer's text; by default it stays text, streamed piece by piece.
        document_prompt: what is read of each document; by default its page content.
        document_separator: what stands between documents; by default a blank line.
        document_variable_name: the input that has the documents.
        options: further fields of `WimRunnable`. Without documents the answer is ``empty_response``, by default that
            there are none.

    Raises:
        ValueError: if the prompt has no variable for the documents.

    Returns:
        A runnable. Input: a dict with documents and ``input`` or ``question``. Output: the answer.
    """
    options.setdefault("empty_response", NOTHING_FOUND)
    if prompt is not None and document_variable_name not in prompt.input_variables:
        raise ValueError(
            f"The prompt has no variable {document_variable_name!r} for the documents; it has {prompt.input_variables}."
        )
    if prompt is not None:
        options["prompts"] = {**_templates(options), "answer": prompt}
    reader = WimRunnable(
        kernel=kernel,
        documents_key=document_variable_name,
        document_prompt=document_prompt,
        document_separator=document_separator,
        **options,
    )
    chain: Runnable[dict[str, Any], Any] = reader.pick("answer")
    if output_parser is not None:
        chain = chain | output_parser
    return chain.with_config(run_name="wim_documents_chain")


class WimMapReduceChain(WimRunnable):
    """A map-reduce chain whose map step reads on instead of starting afresh; see `create_wim_map_reduce_chain`."""

    documents_key: str | None = "input_documents"
    output_key: str = "output_text"
    return_intermediate_steps: bool = False
    map_variables: tuple[str, ...] = ()
    combine_variables: tuple[str, ...] = ()

    output_fields: ClassVar[dict[str, Any]] = {}

    @property
    def input_keys(self) -> list[str]:
        """Names of the inputs."""
        return [self.documents_key or "input_documents"]

    @property
    def output_keys(self) -> list[str]:
        """Names of the outputs, beside the inputs, which are echoed."""
        return [self.output_key, *(["intermediate_steps"] if self.return_intermediate_steps else [])]

    def invoke(
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        **kwargs: Any,
    ) -> Outputs:
        """The inputs, the answer and, if wanted, the intermediate steps; or only what is new."""
        return self._wanted(super().invoke(input, config, **kwargs), return_only_outputs)

    async def ainvoke(
        self,
        input: Inputs,
        config: RunnableConfig | None = None,
        *,
        return_only_outputs: bool = False,
        **kwargs: Any,
    ) -> Outputs:
        """See `invoke`."""
        return self._wanted(await super().ainvoke(input, config, **kwargs), return_only_outputs)

    def _wanted(self, output: Outputs, return_only_outputs: bool) -> Outputs:
        return {name: output[name] for name in self.output_keys} if return_only_outputs else output

    def get_output_schema(self, config: Any = None) -> type[BaseModel]:
        """The outputs beside the echoed inputs."""
        kinds: dict[str, Any] = {self.output_key: (str, ...)}
        if self.return_intermediate_steps:
            kinds["intermediate_steps"] = (list[str], ...)
        return create_model(self.get_name("Output"), **kinds)

    def _as_mapping(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        return {self.documents_key or "input_documents": inputs}

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


def create_wim_map_reduce_chain(
    kernel: WimKernel,
    *,
    question_prompt: PromptLike | None = None,
    map_prompt: PromptLike | None = None,
    combine_prompt: PromptLike | None = None,
    map_reduce_document_variable_name: str | None = None,
    combine_document_variable_name: str | None = None,
    document_prompt: BasePromptTemplate[Any] | None = None,
    input_key: str = "input_documents",
    output_key: str = "output_text",
    return_intermediate_steps: bool = False,
    return_map_steps: bool = False,
    task: str = "answer",
    **options: Any,
) -> WimMapReduceChain:
    """A chain with the keys of `MapReduceDocumentsChain`, as ``load_qa_chain`` and ``load_summarize_chain`` make them.

    Args:
        kernel: reads and answers.
        question_prompt: asks for the note on a chunk (the map step's prompt).
        map_prompt: the same, by the name that ``load_summarize_chain`` has for it.
        combine_prompt: asks for the answer; a variable ``summaries`` or ``text`` is the list of notes.
        map_reduce_document_variable_name: the map prompt's variable for the document, if it has another name.
        combine_document_variable_name: the combine prompt's variable for the notes, likewise.
        document_prompt: what is read of each document; by default its page content.
        input_key: the input that has the documents.
        output_key: the output that has the answer.
        return_intermediate_steps: also give ``intermediate_steps``: one text a document, its notes.
        return_map_steps: the same, by the name that ``load_qa_chain`` has for it.
        task: ``"answer"``, as ``load_qa_chain``, or ``"summarise"``, as ``load_summarize_chain``, which needs no
            question.
        options: further fields of `WimRunnable`.

    Returns:
        A runnable. Input: a dict with documents and, unless for a summary, a ``question``. Output: the inputs, the
        answer and, if wanted, the intermediate steps.
    """
    prompts = _templates(options)
    if question_prompt is not None and map_prompt is not None:
        raise TypeError("question_prompt and map_prompt are two names for one thing: give one of them.")
    asked = map_prompt if question_prompt is None else question_prompt
    if asked is not None:
        prompts["margin"] = asked
    if combine_prompt is not None:
        prompts["answer"] = combine_prompt
    if prompts:
        options["prompts"] = prompts
    return WimMapReduceChain(
        kernel=kernel,
        documents_key=input_key,
        output_key=output_key,
        return_intermediate_steps=return_intermediate_steps or return_map_steps,
        map_variables=tuple(filter(None, [map_reduce_document_variable_name])),
        combine_variables=tuple(filter(None, [combine_document_variable_name])),
        document_prompt=document_prompt,
        task=task,
        **options,
    )


def _templates(options: dict[str, Any]) -> dict[str, PromptLike]:
    """The prompts given by name, free to be added to.

    Raises:
        TypeError: if they are given as the kernel's `Prompts`, which nothing can be mixed with.
    """
    prompts = options.pop("prompts", None) or {}
    if not isinstance(prompts, Mapping):
        raise TypeError("Give either the kernel's Prompts, to WimRunnable, or prompt templates by name.")
    return dict(prompts)
