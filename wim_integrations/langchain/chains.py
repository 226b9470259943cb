"""Replacements for `create_stuff_documents_chain`, and for `load_qa_chain` and `load_summarize_chain`."""

from __future__ import annotations

from inspect import signature
from typing import Any

from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, create_model

from wim_integrations.langchain.chat_model import Model, as_kernel
from wim_integrations.langchain.documents import Documents
from wim_integrations.langchain.map_reduce import WimMapReduceChain
from wim_integrations.langchain.outputs import Inputs
from wim_integrations.langchain.prompts import QUESTION_KEYS, PromptLike, as_templates
from wim_integrations.langchain.runnable import WimRunnable
from wim_integrations.options import check_names

NOTHING_FOUND = "No documents were found that could answer this."


def create_wim_documents_chain(
    kernel: Model,
    prompt: BasePromptTemplate[Any] | None = None,
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[Any] | None = None,
    document_separator: str | None = None,
    document_variable_name: str = "context",
    **options: Any,
) -> Runnable[Inputs, Any]:
    """A chain from a question and documents to the answer's text, which replaces `create_stuff_documents_chain`.

    Args:
        kernel: the kernel, or the chat model that the replaced chain has.
        prompt: the answer's prompt. Its variable for the documents becomes "the document above", since documents are
            read before any prompt; its further variables are inputs. If no input is the question, the prompt's own
            text is.
        output_parser: the parser of the answer's text; by default the text is streamed piece by piece.
        document_prompt: the template of each document's text; by default its page content.
        document_separator: the text between documents; by default a blank line.
        document_variable_name: the input's key of the documents.
        options: further fields of `WimRunnable`. The default of ``empty_response``, the answer without documents, says
            that no documents were found.

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
            f"{prompt.input_variables}: name one of them with document_variable_name=."
        )
    if prompt is not None:
        options["prompts"] = {**as_templates(options), "answer": prompt}
    reader = _DocumentsReader(
        kernel=as_kernel(kernel),
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
    """A `WimRunnable` with the input schema of `create_stuff_documents_chain`."""

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """The name of the public class."""
        return super().get_name(suffix, name=name or self.name or "WimRunnable")

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The input's fields: the documents, the question as the prompt names it, and the prompt's other variables."""
        prompts = self._prompts()
        answer = prompts.templates.get("answer")
        questions = [name for name in QUESTION_KEYS if answer is not None and name in answer.input_variables]
        if answer is None:
            questions = [self.question_key or "input"]
        names: dict[str, Any] = {
            self.documents_key or "context": (Documents, ...),
            **{name: (str, ... if self.task == "answer" else "") for name in questions},
            **{name: (Any, ...) for name in prompts.variables},
        }
        return create_model(self.get_name("Input"), **names)


_DOCUMENTS_ARGUMENTS = tuple(
    name for name in signature(create_wim_documents_chain).parameters if name != "options"
)


def create_wim_map_reduce_chain(
    kernel: Model,
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
    """A chain with the keys of `MapReduceDocumentsChain`; replaces ``load_qa_chain`` and ``load_summarize_chain``.

    Args:
        kernel: the kernel, or the chat model that the replaced chain has.
        question_prompt: the prompt of a chunk's note, as ``load_qa_chain`` names it (the map step's prompt).
        map_prompt: the prompt of a chunk's note, as ``load_summarize_chain`` names it.
        combine_prompt: the prompt of the answer; its variable ``summaries`` or ``text`` is the list of notes.
        map_reduce_document_variable_name: the map prompt's variable for the document, if it has another name.
        combine_document_variable_name: the combine prompt's variable for the notes, if it has another name.
        document_prompt: the template of each document's text; by default its page content.
        input_key: the input's key of the documents.
        output_key: the output's key of the answer.
        return_intermediate_steps: whether the output has ``intermediate_steps``: for each document, its notes as one
            text.
        return_map_steps: ``return_intermediate_steps``, as ``load_qa_chain`` names it.
        task: ``"answer"``, as in ``load_qa_chain``, or ``"summarise"``, as in ``load_summarize_chain``, which needs no
            question.
        options: further fields of `WimRunnable`.

    Returns:
        A runnable; if langchain-classic is installed, one of its `BaseCombineDocumentsChain`s, with ``combine_docs``,
        ``memory``, ``callbacks`` and ``verbose``. Input: a dict with documents and, unless for a summary, a
        ``question``. Output: the inputs, the answer and, if configured, the intermediate steps.
    """
    kind = _chain_class()
    check_names(options, [*kind.model_fields, *_MAP_REDUCE_ARGUMENTS], "create_wim_map_reduce_chain")
    prompts = as_templates(options)
    if question_prompt is not None and map_prompt is not None:
        raise TypeError("question_prompt and map_prompt are two names of the same prompt: give one of them.")
    margin_prompt = map_prompt if question_prompt is None else question_prompt
    if margin_prompt is not None:
        prompts["margin"] = margin_prompt
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
    """The chain's class: a langchain-classic chain if that package is installed."""
    try:
        from wim_integrations.langchain.classic import WimMapReduceDocumentsChain
    except ImportError:
        return WimMapReduceChain
    return WimMapReduceDocumentsChain


_MAP_REDUCE_ARGUMENTS = tuple(
    name for name in signature(create_wim_map_reduce_chain).parameters if name != "options"
)
