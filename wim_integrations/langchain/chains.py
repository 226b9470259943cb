"""Replacements for `create_stuff_documents_chain`, and for `load_qa_chain` and `load_summarize_chain`."""

from __future__ import annotations

from inspect import signature
from typing import Any

from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, create_model

from wim_integrations.langchain.documents import Documents
from wim_integrations.langchain.map_reduce import WimMapReduceChain
from wim_integrations.langchain.outputs import Inputs
from wim_integrations.langchain.prompts import QUESTION_KEYS, PromptLike, as_templates
from wim_integrations.langchain.runnable import WimRunnable
from wim_integrations.options import check_names
from wim_kernel import WimKernel

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
) -> Runnable[Inputs, Any]:
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
    check_names(options, [*WimRunnable.model_fields, *_DOCUMENTS_ARGUMENTS], "create_wim_documents_chain")
    options.setdefault("empty_response", NOTHING_FOUND)
    if prompt is not None and document_variable_name not in prompt.input_variables:
        raise ValueError(
            f"The prompt has no variable {document_variable_name!r} for the documents; it has "
            f"{prompt.input_variables}: say which of them it is with document_variable_name=."
        )
    if prompt is not None:
        options["prompts"] = {**as_templates(options), "answer": prompt}
    reader = _DocumentsReader(
        kernel=kernel,
        documents_key=document_variable_name,
        document_prompt=document_prompt,
        document_separator=document_separator,
        **options,
    )
    chain: Runnable[Inputs, Any] = reader.pick("answer").with_types(output_type=str)
    if output_parser is not None:
        chain = chain | output_parser
    return chain.with_config(run_name="wim_documents_chain")


class _DocumentsReader(WimRunnable):
    """Announces the inputs that `create_stuff_documents_chain` has."""

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """As the class that it stands for."""
        return super().get_name(suffix, name=name or self.name or "WimRunnable")

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The documents, the question under the name that the prompt has for it, and the prompt's other variables."""
        prompts = self._prompts()
        answer = prompts.templates.get("answer")
        asked = [name for name in QUESTION_KEYS if answer is not None and name in answer.input_variables]
        if answer is None:
            asked = [self.question_key or "input"]
        names: dict[str, Any] = {
            self.documents_key or "context": (Documents, ...),
            **{name: (str, ... if self.task == "answer" else "") for name in asked},
            **{name: (Any, ...) for name in prompts.variables},
        }
        return create_model(self.get_name("Input"), **names)


_DOCUMENTS_ARGUMENTS = tuple(
    name for name in signature(create_wim_documents_chain).parameters if name != "options"
)


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
        A runnable; where langchain-classic is installed, one of its chains that combine documents, with
        ``combine_docs``, ``memory``, ``callbacks`` and ``verbose``. Input: a dict with documents and, unless for a
        summary, a ``question``. Output: the inputs, the answer and, if wanted, the intermediate steps.
    """
    kind = _chain_class()
    check_names(options, [*kind.model_fields, *_MAP_REDUCE_ARGUMENTS], "create_wim_map_reduce_chain")
    prompts = as_templates(options)
    if question_prompt is not None and map_prompt is not None:
        raise TypeError("question_prompt and map_prompt are two names for one thing: give one of them.")
    asked = map_prompt if question_prompt is None else question_prompt
    if asked is not None:
        prompts["margin"] = asked
    if combine_prompt is not None:
        prompts["answer"] = combine_prompt
    if prompts:
        options["prompts"] = prompts
    return kind(
        kernel=kernel,
        input_key=input_key,
        output_key=output_key,
        return_intermediate_steps=return_intermediate_steps or return_map_steps,
        map_variables=tuple(filter(None, [map_reduce_document_variable_name])),
        combine_variables=tuple(filter(None, [combine_document_variable_name])),
        document_prompt=document_prompt,
        task=task,
        **options,
    )


def _chain_class() -> type[WimMapReduceChain]:
    """The chain, of langchain-classic's kind where that is installed."""
    try:
        from wim_integrations.langchain.classic import WimMapReduceDocumentsChain
    except ImportError:
        return WimMapReduceChain
    return WimMapReduceDocumentsChain


_MAP_REDUCE_ARGUMENTS = tuple(
    name for name in signature(create_wim_map_reduce_chain).parameters if name != "options"
)
