"""LlamaIndex prompt templates as the kernel's prompts, formatted for each call with the call's variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import MessageRole
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate

from wim_kernel import Prompts
from wim_kernel.text.foreign_prompts import CallPrompts, adopt, marked

ANSWER, MARGIN = "text_qa_template", "margin_template"
_FIELDS = {ANSWER: "answer", MARGIN: "margin"}


class Templates:
    """The templates of ``get_prompts`` and ``update_prompts``: one for the answer, one for margins.

    Args:
        base: the kernel's prompts; templates replace some of them.
        given: templates, by LlamaIndex's names.
    """

    def __init__(self, base: Prompts, given: Mapping[str, BasePromptTemplate | None]) -> None:
        self.base = base
        self._defaults = {
            name: PromptTemplate(getattr(base, _FIELDS[name]).replace("{question}", "{query_str}"))
            for name in _FIELDS
        }
        self.shown: dict[str, BasePromptTemplate] = dict(self._defaults)
        self.update({name: template for name, template in given.items() if template is not None})

    def update(self, prompts: Mapping[str, BasePromptTemplate]) -> None:
        """Replace templates. ``summary_template``, its name in summarising synthesizers, is the answer's template."""
        for name, template in prompts.items():
            name = ANSWER if name == "summary_template" else name
            if name in _FIELDS:
                self.shown[name] = template

    def for_call(self, question: str, variables: Mapping[str, Any]) -> CallPrompts:
        """Format the kernel's prompts for one call; ``variables`` are the templates' further variables."""
        formatted = {
            _FIELDS[name]: self._formatted(name, template, question, variables)
            for name, template in self.shown.items()
            if template is not self._defaults[name]
        }
        return adopt(self.base, {}, formatted)

    def _formatted(
        self, name: str, template: BasePromptTemplate, question: str, variables: Mapping[str, Any]
    ) -> str:
        above = "the document above" if name == ANSWER else "the last passage above"
        values = {
            **dict.fromkeys(("context_str", "context_msg", "context_messages"), above),
            "query_str": marked("question", question),
            "margins": marked("margins"),
            **{key: item for key, item in variables.items() if key not in ("query_str", "context_str")},
        }
        messages = template.format_messages(llm=None, **values)
        rules = [message.content or "" for message in messages if message.role == MessageRole.SYSTEM]
        turns = [message for message in messages if message.role != MessageRole.SYSTEM]
        if len(turns) == 1:
            conversation = turns[0].content or ""
        else:
            conversation = "\n".join(f"{message.role.value}: {message.content}" for message in turns)
        return "\n\n".join(part for part in (*rules, conversation) if part)
