"""LlamaIndex's Refine and TreeSummarize over the kernel's own model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.response_synthesizers import Refine, TreeSummarize

from wim_integrations.evaluation.generation import Generator

_LONGEST_WINDOW = 131_072  # for a model without a limit


class GenerateCustomLLM(CustomLLM):
    """A loaded model as a LlamaIndex language model.

    Attributes:
        generator: the `Generator` that runs the model.
        window: the model's context window, in tokens.
        new_tokens: most tokens of each output.
    """

    generator: Any
    window: int
    new_tokens: int

    @property
    def metadata(self) -> LLMMetadata:
        """The window and output size, by which LlamaIndex sizes its prompts."""
        return LLMMetadata(
            context_window=self.window,
            num_output=self.new_tokens,
            is_chat_model=self.generator.has_template,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer messages, rendered by the model's chat template."""
        prompt = self.generator.render(
            [{"role": message.role.value, "content": message.content or ""} for message in messages]
        )
        text = self.generator.generate([prompt], self.new_tokens)[0]
        return ChatResponse(message=ChatMessage(role="assistant", content=text))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; for a model with a chat template it becomes the user's turn."""
        return CompletionResponse(
            text=self.generator.generate([self.generator.as_user(prompt)], self.new_tokens)[0]
        )

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete`, as one piece."""
        text = self.complete(prompt, formatted=formatted, **kwargs).text

        def pieces() -> CompletionResponseGen:
            yield CompletionResponse(text=text, delta=text)

        return pieces()


_MODES: dict[str, type[Refine] | type[TreeSummarize]] = {
    "refine": Refine,
    "tree-summarize": TreeSummarize,
}


def synthesize(
    mode: str, generator: Generator, window: int | None, answer_tokens: int
) -> Callable[[str, Sequence[str]], str]:
    """A response synthesizer with LlamaIndex's own prompts.

    Args:
        mode: ``"refine"`` or ``"tree-summarize"``.
        generator: the `Generator` that runs the model.
        window: the model's context window, in tokens.
        answer_tokens: most tokens of each output, the answer and intermediate answers.

    Returns:
        Answers a question from chunks.
    """
    size = min(window or _LONGEST_WINDOW, _LONGEST_WINDOW)
    llm = GenerateCustomLLM(generator=generator, window=size, new_tokens=answer_tokens)
    helper = PromptHelper(context_window=size, num_output=answer_tokens, tokenizer=generator.tokenizer.encode)
    synthesizer = _MODES[mode](llm=llm, prompt_helper=helper)
    return lambda question, chunks: str(synthesizer.get_response(question, list(chunks)))
