"""LangChain prompt templates as the kernel's prompts, formatted for each call with the call's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.messages import SystemMessage, get_buffer_string
from langchain_core.prompts import BaseChatPromptTemplate, BasePromptTemplate

from wim_kernel import PROMPTS, MissingInputError, Prompts
from wim_kernel.text.foreign_prompts import CallPrompts, adopt, marked, unmarked

PromptLike = str | BasePromptTemplate[Any]
GivenPrompts = Prompts | Mapping[str, PromptLike] | None

QUESTION_KEYS = ("question", "input", "query")
DOCUMENTS_KEYS = ("documents", "context", "input_documents")
NOTES_KEYS = ("margins", "notes", "summaries", "doc_summaries", "text", "docs")

_NAMES = tuple(item.name for item in fields(Prompts))
_ANSWERING = ("answer", "notes")


@dataclass(frozen=True)
class PromptSet:
    """Prompt templates by the names of `Prompts`' fields.

    A formatted LangChain template is data: control tokens and braces in it stay plain characters.

    Attributes:
        task: the task, whose prompts are the defaults.
        given: `Prompts`, or templates by name; strings are templates of the kernel.
        documents_keys: names of variables for the documents.
        notes_keys: names of variables for the kept margins in the answer's prompt.

    Raises:
        ValueError: for an unknown name, or a value that is no template.
    """

    task: str
    given: GivenPrompts = None
    documents_keys: Sequence[str] = DOCUMENTS_KEYS
    notes_keys: Sequence[str] = NOTES_KEYS

    def __post_init__(self) -> None:
        if self.given is None or isinstance(self.given, Prompts):
            return
        unknown = set(self.given) - set(_NAMES)
        if unknown:
            raise ValueError(f"There are no prompts called {sorted(unknown)}; there are {', '.join(_NAMES)}.")
        for name, template in self.given.items():
            if not isinstance(template, str | BasePromptTemplate):
                raise ValueError(
                    f"The prompt {name!r} is a string or a prompt template, not a {type(template).__name__}."
                )

    @property
    def templates(self) -> dict[str, BasePromptTemplate[Any]]:
        """The LangChain templates, by name."""
        if not isinstance(self.given, Mapping):
            return {}
        return {name: item for name, item in self.given.items() if isinstance(item, BasePromptTemplate)}

    @property
    def variables(self) -> list[str]:
        """The templates' variables other than the question, the documents and the notes: inputs of the call."""
        known = {*QUESTION_KEYS, *self.documents_keys, *self.notes_keys, "note"}
        names = (name for template in self.templates.values() for name in template.input_variables)
        return sorted(set(names) - known)

    def for_call(self, question: str, question_key: str | None, inputs: Mapping[str, Any]) -> CallPrompts:
        """Format the prompts for one call.

        Args:
            question: the question.
            question_key: the input's key of the question.
            inputs: all inputs. A variable that is not among them is the question, the documents or the notes, by its
                name.

        Raises:
            KeyError: for a variable that is none of these.
        """
        base = PROMPTS["summarise" if self.task == "summarise" else "answer"]
        if self.given is None:
            return CallPrompts(base)
        if isinstance(self.given, Prompts):
            return CallPrompts(self.given)
        kernels = {name: item for name, item in self.given.items() if isinstance(item, str)}
        formatted = {
            name: _formatted(template, self._values(name, template, question, question_key, inputs))
            for name, template in self.templates.items()
        }
        return adopt(base, kernels, formatted)

    def as_question(self, inputs: Mapping[str, Any]) -> str | None:
        """The answer's template, formatted, as the question of an input without one; None without such a template."""
        template = self.templates.get("answer")
        if template is None:
            return None
        values = self._values("answer", template, "", None, inputs)
        values.update(dict.fromkeys(set(self.documents_keys) & set(values), ""))
        return unmarked(_formatted(template, values)).strip()

    def _values(
        self,
        prompt: str,
        template: BasePromptTemplate[Any],
        question: str,
        question_key: str | None,
        inputs: Mapping[str, Any],
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in template.input_variables:
            if name == question_key:
                values[name] = marked("question", question)
            elif name in self.documents_keys:
                values[name] = "the document above" if prompt in _ANSWERING else "the last passage above"
            elif name in inputs:
                values[name] = inputs[name]
            elif name in QUESTION_KEYS:
                values[name] = marked("question", question)
            elif name in self.notes_keys and prompt in _ANSWERING:
                values[name] = marked("margins")
            elif name in self.notes_keys:
                values[name] = "the last passage above"
            elif name == "note" and prompt == "judgement":
                values[name] = marked("note")
            else:
                has = ", ".join(sorted(map(str, inputs)))
                raise MissingInputError(
                    f"The prompt {prompt!r} asks for {name!r}, and the input has {has}: give it as an input, or call "
                    f"the documents {self.documents_keys[-1]!r} and the notes 'summaries' in the prompt."
                )
        optional = getattr(template, "optional_variables", [])
        values.update({name: inputs[name] for name in optional if name in inputs})
        return values


def _formatted(template: BasePromptTemplate[Any], values: dict[str, Any]) -> str:
    """The formatted template; of a chat template, system messages come first, and a single turn has no role."""
    if not isinstance(template, BaseChatPromptTemplate):
        return str(template.format(**values))
    messages = template.format_messages(**values)
    rules = [message.text for message in messages if isinstance(message, SystemMessage)]
    turns = [message for message in messages if not isinstance(message, SystemMessage)]
    conversation = turns[0].text if len(turns) == 1 else get_buffer_string(turns)
    return "\n\n".join(part for part in (*rules, conversation) if part)


def as_templates(options: dict[str, Any]) -> dict[str, PromptLike]:
    """Take ``prompts`` out of options, as templates by name, to add further ones.

    Raises:
        TypeError: for the kernel's `Prompts`, which cannot be combined with templates.
    """
    prompts = options.pop("prompts", None) or {}
    if not isinstance(prompts, Mapping):
        raise TypeError("Give either the kernel's Prompts, to WimRunnable, or prompt templates by name.")
    return dict(prompts)
