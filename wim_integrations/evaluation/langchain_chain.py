"""LangChain's map-reduce chain over the kernel's own model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from langchain_classic.chains.question_answering import load_qa_chain, map_reduce_prompt
from langchain_core.documents import Document
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate, StringPromptTemplate

from wim_integrations.evaluation.generation import Generator

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class GenerateLLM(BaseLLM):
    """A loaded model as a LangChain language model.

    Attributes:
        generator: the `Generator` that runs the model.
        new_tokens: most tokens of each output.
        min_new_tokens: fewest tokens of each output.
        rendered: whether prompts are rendered by a chat template already; otherwise each becomes a user's turn.
    """

    generator: Any
    new_tokens: int
    min_new_tokens: int | None = None
    rendered: bool = False

    @property
    def _llm_type(self) -> str:
        return "generate"

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text, as the chain counts them to decide whether to collapse notes."""
        return int(self.generator.count_tokens(text))

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        if not self.rendered:
            prompts = [self.generator.as_user(prompt) for prompt in prompts]
        texts = self.generator.generate(prompts, self.new_tokens, min_new_tokens=self.min_new_tokens)
        return LLMResult(generations=[[Generation(text=text)] for text in texts])


class RenderedPrompt(StringPromptTemplate):
    """A chat prompt as text, rendered by the model's chat template.

    Attributes:
        chat: the prompt's messages.
        generator: the `Generator` with the tokenizer.
    """

    chat: ChatPromptTemplate
    generator: Any

    def format(self, **kwargs: Any) -> str:
        """The whole prompt."""
        messages = self.chat.format_messages(**kwargs)
        return str(
            self.generator.render([{"role": _ROLES[m.type], "content": str(m.content)} for m in messages])
        )


def map_reduce(
    generator: Generator, note_tokens: int, answer_tokens: int
) -> Callable[[str, Sequence[str]], str]:
    """``load_qa_chain(chain_type="map_reduce")`` with LangChain's own prompts.

    A model with a chat template gets the chain's prompts for chat models, another one those for plain text.

    Args:
        generator: the `Generator` that runs the model.
        note_tokens: most tokens of each chunk's note, and of collapsed notes.
        answer_tokens: most tokens of the answer.

    Returns:
        Answers a question from chunks.
    """
    prompts: dict[str, Any] = {}
    if generator.has_template:
        for name in ("question", "combine"):
            chat = getattr(map_reduce_prompt, f"CHAT_{name.upper()}_PROMPT")
            prompts[f"{name}_prompt"] = RenderedPrompt(
                chat=chat, generator=generator, input_variables=chat.input_variables
            )
    rendered = generator.has_template
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # langchain-classic's chains are deprecated, and still widely used
        chain = load_qa_chain(
            GenerateLLM(generator=generator, new_tokens=note_tokens, rendered=rendered),
            chain_type="map_reduce",
            reduce_llm=GenerateLLM(generator=generator, new_tokens=answer_tokens, rendered=rendered),
            **prompts,
        )

    def answer(question: str, chunks: Sequence[str]) -> str:
        documents = [Document(page_content=chunk) for chunk in chunks]
        return str(chain.invoke({"input_documents": documents, "question": question})["output_text"])

    return answer
