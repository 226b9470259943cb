"""LangChain prompt templates as prompts of the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage, get_buffer_string
from langchain_core.prompts import BaseChatPromptTemplate, BasePromptTemplate
from langchain_core.prompts.chat import MessagesPlaceholder

from wim_kernel import PROMPTS, Prompts

PromptLike = str | BasePromptTemplate[Any]

QUESTION_KEYS = ("question", "input", "query")
DOCUMENTS_KEYS = ("documents", "context", "input_documents")
NOTES_KEYS = ("margins", "notes", "summaries", "text")

_NAMES = tuple(field.name for field in fields(Prompts))
_OWN = "wim_"  # in front of the caller's own variables, so that none is taken for one of the kernel's


@dataclass(frozen=True)
class PromptSet:
    """Prompts for the kernel, and which inputs they ask for beyond the question and the documents."""

    prompts: Prompts
    variables: frozenset[str] = frozenset()

    def values(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        """The kernel's ``variables`` for a call's inputs.

        Raises:
            KeyError: if an input is missing.
        """
        missing = sorted(self.variables - set(inputs))
        if missing:
            raise KeyError(f"The prompts ask for {missing}, and the input has {sorted(map(str, inputs))}.")
        return {_OWN + name: _as_text(inputs[name]) for name in sorted(self.variables)}


def as_prompts(
    task: str,
    given: Prompts | Mapping[str, PromptLike] | None,
    question_keys: Sequence[str] = QUESTION_KEYS,
    documents_keys: Sequence[str] = DOCUMENTS_KEYS,
) -> PromptSet:
    """The task's prompts with some replaced.

    In a template, a question's name is the question, a name for documents is words for what stands above (the
    document was read before any prompt), a name for notes (``margins``, ``notes``, ``summaries``, ``text``) is, in
    the answer's prompt, the kept margins. Any other variable is an input of the call. A template may be of any format
    that LangChain has; chat templates become one text.

    Args:
        task: ``"answer"`` or ``"summarise"``.
        given: `Prompts` as they are, or templates by the names of `Prompts`' fields; strings are the kernel's own
            templates, in which only ``{question}``, ``{margins}`` and ``{note}`` are holes.
        question_keys: inputs that hold the question.
        documents_keys: inputs that hold the documents.

    Raises:
        ValueError: for a name that is not a prompt's, or a template without text.
    """
    base = PROMPTS["summarise" if task == "summarise" else "answer"]
    if given is None or isinstance(given, Prompts):
        return PromptSet(given or base)
    unknown = set(given) - set(_NAMES)
    if unknown:
        raise ValueError(f"There are no prompts called {sorted(unknown)}; there are {', '.join(_NAMES)}.")
    texts: dict[str, str] = {}
    variables: set[str] = set()
    for name, template in given.items():
        if isinstance(template, str):
            texts[name] = template
            continue
        if not isinstance(template, BasePromptTemplate):
            raise ValueError(
                f"The prompt {name!r} is a string or a prompt template, not a {type(template).__name__}."
            )
        holes = dict.fromkeys(question_keys, "{question}")
        above = "the document above" if name in ("answer", "notes") else "the last passage above"
        holes.update(dict.fromkeys(documents_keys, above))
        holes.update(dict.fromkeys(NOTES_KEYS, "{margins}" if name in ("answer", "notes") else above))
        holes["note"] = "{note}"
        texts[name] = _kernel_template(template, holes, variables)
    return PromptSet(replace(base, **texts), frozenset(variables))


def _kernel_template(template: BasePromptTemplate[Any], holes: Mapping[str, str], variables: set[str]) -> str:
    """A template's text with the kernel's holes; adds the caller's own variables to ``variables``."""
    required = set(template.input_variables)
    values: dict[str, Any] = {}
    for name in required:
        if name not in holes:
            variables.add(name)
        values[name] = holes.get(name, "{" + _OWN + name + "}")
    text = _formatted(template, values)
    if not text.strip():
        raise ValueError("A prompt template is empty.")
    return text if text[0].isspace() else "\n\n" + text


def _formatted(template: BasePromptTemplate[Any], values: dict[str, Any]) -> str:
    if not isinstance(template, BaseChatPromptTemplate):
        return str(template.format(**values))
    for message in getattr(template, "messages", ()):
        if isinstance(message, MessagesPlaceholder) and message.variable_name in values:
            values[message.variable_name] = [HumanMessage(values[message.variable_name])]
    messages = template.format_messages(**values)
    rules = [message.text for message in messages if isinstance(message, SystemMessage)]
    turns = [message for message in messages if not isinstance(message, SystemMessage)]
    said = turns[0].text if len(turns) == 1 else get_buffer_string(turns)
    return "\n\n".join(part for part in (*rules, said) if part)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        return value.text
    if isinstance(value, Sequence) and value and all(isinstance(item, BaseMessage) for item in value):
        return get_buffer_string(value)
    return "" if value in (None, [], ()) else str(value)
