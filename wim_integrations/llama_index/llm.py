"""The kernel's model as a LlamaIndex language model, for engines that need one besides a synthesizer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, NoReturn, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr, ValidationError
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import BasePromptTemplate

from wim_integrations.llama_index.shapes import shape_of
from wim_integrations.options import check_kernel, check_names
from wim_kernel import Options, WimKernel
from wim_kernel.common.concurrency import iterate_in_thread
from wim_kernel.common.copying import refuse_to_pickle
from wim_kernel.run.completion import Completed, Turn, complete, is_chat_model
from wim_kernel.run.options import parse_options

Model = TypeVar("Model", bound=BaseModel)

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
}
_CALL_OPTIONS = ("max_tokens", "generation_config", "json_schema")
_STRUCTURED_TOKENS = 512


class WimLLM(CustomLLM):
    """A kernel's model as a language model: it replies by its chat template, greedily by default.

    Chat engines, selectors, question generators and query transforms accept it, so that an application loads one model
    only. Output for a selector or a structured prediction is decoded under its JSON schema, so that it always parses.

    Args:
        kernel: the kernel.
        fields: further fields of `LLM`: ``callback_manager``, ``system_prompt``, ...

    Attributes:
        max_tokens: most tokens of a reply.
        generation_config: the generation config of replies.

    Example:
        >>> CondenseQuestionChatEngine.from_defaults(engine, llm=WimLLM(kernel))  # doctest: +SKIP
    """

    max_tokens: int = Field(default=256, gt=0, description="Most tokens of a reply.")
    generation_config: Any = Field(default=None, exclude=True, description="A GenerationConfig, for replies.")
    _kernel: WimKernel = PrivateAttr()

    def __init__(self, kernel: WimKernel, **fields: Any) -> None:
        check_kernel(kernel, "WimLLM")
        super().__init__(**fields)
        self._kernel = kernel

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)

    @classmethod
    def class_name(cls) -> str:
        """The class's name."""
        return "WimLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The window and the name of the kernel's model."""
        engine = self._kernel.engine
        return LLMMetadata(
            context_window=engine.window or 65_536,
            num_output=self.max_tokens,
            is_chat_model=is_chat_model(self._kernel.engine),
            model_name=engine.model_name,
        )

    # -- completions --------------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Reply to a prompt, which becomes the user's turn.

        Args:
            prompt: the prompt.
            formatted: ignored; the model's chat template is applied in any case.
            kwargs: ``max_tokens``, ``generation_config``, and ``json_schema``, the schema of the reply.
        """
        return _last(self._completions([Turn("user", prompt)], kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Like `complete`, piece by piece."""
        return self._completions([Turn("user", prompt)], kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See `complete`."""
        return await _alast(self._acompletions([Turn("user", prompt)], kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """See `stream_complete`."""
        return self._acompletions([Turn("user", prompt)], kwargs)

    # -- chats --------------------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Reply to a conversation; see `complete`."""
        return _as_chat(_last(self._completions(_turns(messages), kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Like `chat`, piece by piece."""

        def pieces() -> ChatResponseGen:
            with closing(self._completions(_turns(messages), kwargs)) as responses:
                for response in responses:
                    yield _as_chat(response)

        return pieces()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """See `chat`."""
        return _as_chat(await _alast(self._acompletions(_turns(messages), kwargs)))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """See `stream_chat`."""

        async def pieces() -> ChatResponseAsyncGen:
            async with aclosing(self._acompletions(_turns(messages), kwargs)) as responses:
                async for response in responses:
                    yield _as_chat(response)

        return pieces()

    # -- replies under a JSON schema ----------------------------------------------------------------------------------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Reply to a template; if the output of its parser has a known JSON schema, the reply is decoded under it."""
        schema = self._supported_schema(shape_of(prompt, prompt_args))
        if schema is None:
            return str(super().predict(prompt, **prompt_args))
        response = self.chat(self._get_messages(prompt, **prompt_args), json_schema=schema)
        return str(self._parse_output(response.message.content or ""))

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """See `predict`."""
        schema = self._supported_schema(shape_of(prompt, prompt_args))
        if schema is None:
            return str(await super().apredict(prompt, **prompt_args))
        response = await self.achat(self._get_messages(prompt, **prompt_args), json_schema=schema)
        return str(self._parse_output(response.message.content or ""))

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of a class, decoded under the class's schema."""
        messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
        return _parsed(output_cls, self.chat(messages, **options))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """See `structured_predict`."""
        messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
        return _parsed(output_cls, await self.achat(messages, **options))

    def _structured(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        schema = output_cls.model_json_schema()
        request = ChatMessage(role=MessageRole.USER, content=f"Reply in JSON that fits this schema: {schema}")
        options = {"max_tokens": max(self.max_tokens, _STRUCTURED_TOKENS), **(llm_kwargs or {})}
        return [*self._get_messages(prompt, **prompt_args), request], {
            **options,
            "json_schema": self._supported_schema(schema),
        }

    def _supported_schema(self, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        """The schema if the engine can decode under it, otherwise None."""
        if schema is None:
            return None
        try:
            engine, settings = self._kernel.engine, parse_options({"answer_schema": schema})
            engine.check_schema(settings.answer_schema or "", settings.answer_config)
        except (ValueError, ImportError):  # decode freely, and let the parser try
            return None
        return schema

    # -- shared by all ------------------------------------------------------------------------------------------------

    def _options(self, given: dict[str, Any]) -> Options:
        check_names(given, _CALL_OPTIONS, "WimLLM")
        config, tokens = given.get("generation_config", self.generation_config), given.get("max_tokens")
        options: Options = {"answer_schema": given.get("json_schema")}
        if config is not None:
            options["answer_config"] = config
        if tokens is not None or config is None or config.max_new_tokens is None:
            options["answer_tokens"] = self.max_tokens if tokens is None else tokens
        return options

    def _completions(
        self, turns: Sequence[Turn], kwargs: dict[str, Any]
    ) -> Generator[CompletionResponse, None, None]:
        text = ""
        with closing(complete(self._kernel.cache, turns, self._options(kwargs))) as pieces:
            for piece in pieces:
                if piece:
                    response = _response(text, piece)
                    text = response.text
                    yield response

    async def _acompletions(
        self, turns: Sequence[Turn], kwargs: dict[str, Any]
    ) -> AsyncGenerator[CompletionResponse, None]:
        text = ""
        work = iterate_in_thread(complete(self._kernel.cache, turns, self._options(kwargs)))
        async with aclosing(work) as pieces:
            async for piece in pieces:
                if piece:
                    response = _response(text, piece)
                    text = response.text
                    yield response


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    return [
        Turn(_ROLES.get(message.role, "user"), message.content or "")  # type: ignore[arg-type]
        for message in messages
    ]


def _response(before: str, piece: str | Completed) -> CompletionResponse:
    if isinstance(piece, str):
        return CompletionResponse(text=before + piece, delta=piece)
    usage = {"prompt_tokens": piece.prompt_tokens, "completion_tokens": piece.output_tokens}
    rest = piece.text.removeprefix(before)
    return CompletionResponse(text=piece.text, delta=rest, raw={"usage": usage})


def _as_chat(response: CompletionResponse) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=response.text)
    return ChatResponse(message=message, delta=response.delta, raw=response.raw)


def _last(responses: Generator[CompletionResponse, None, None]) -> CompletionResponse:
    *_, last = responses
    return last


async def _alast(responses: AsyncGenerator[CompletionResponse, None]) -> CompletionResponse:
    return [response async for response in responses][-1]


def _parsed(output_cls: type[Model], response: ChatResponse) -> Model:
    text = response.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"The reply does not fit {output_cls.__name__}: {text!r}. Give it more max_tokens, or a schema "
            "without constraints that JSON schemas cannot express."
        ) from error
