"""The kernel's options as fields of LangChain's models: every key of `Options` is a field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional, get_type_hints

from langchain_core.documents import BaseDocumentCompressor
from langchain_core.runnables import RunnableSerializable
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, SkipValidation, create_model

from wim_integrations.langchain.chat_model import KernelField
from wim_integrations.langchain.documents import DocumentPrompt
from wim_integrations.langchain.outputs import Inputs, Outputs
from wim_integrations.langchain.prompts import GivenPrompts
from wim_integrations.options import OPTION_NAMES, check_names
from wim_kernel import Options
from wim_kernel.common.copying import refuse_to_pickle


class ReadingFields(BaseModel):
    """The fields of every part that reads documents; a mixin."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    kernel: KernelField = Field(exclude=True)
    document_prompt: DocumentPrompt = None
    document_separator: str | None = None
    chunk_tokens: PositiveInt | None = None
    prompts: Annotated[GivenPrompts, SkipValidation()] = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_pickle(self)

    def given_options(self) -> Options:
        """The kernel's options that are set, without ``prompts``, which are made for each call."""
        given = {name: getattr(self, name) for name in OPTION_NAMES if name != "prompts"}
        options: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
        return options

    @classmethod
    def check_fields(cls, given: dict[str, Any]) -> None:
        """Check that all fields exist.

        Raises:
            UnknownOptionError: for an unknown field.
        """
        check_names(given, cls.model_fields, cls.__name__, "Extra inputs are not permitted: ")


def _checked(config: Any) -> Any:
    """Check that a value is a `GenerationConfig`, whose class is imported by whoever has one, and not here."""
    from transformers import GenerationConfig

    if not isinstance(config, GenerationConfig):
        raise ValueError(f"a GenerationConfig is needed, not a {type(config).__name__}")
    return config


def _with_options(name: str, base: type[BaseModel]) -> type[BaseModel]:
    """A model with every option as a field that defaults to None, on top of `ReadingFields`."""
    hints = get_type_hints(Options, localns={"GenerationConfig": Annotated[Any, AfterValidator(_checked)]})
    fields: dict[str, Any] = {
        option: (Optional[hints[option]], None)  # noqa: UP045 - the hint is evaluated at run time
        for option in OPTION_NAMES
        if option not in ReadingFields.model_fields
    }
    return create_model(name, __base__=(ReadingFields, base), __module__=__name__, **fields)


if TYPE_CHECKING:

    class RunnableFields(ReadingFields, RunnableSerializable[Any, Outputs]):
        """A runnable with the kernel's options as fields. Its input is Any, so that graphs of any state accept it."""

        stop_when: Any = None
        stop_after: Any = None
        variables: Any = None

    class CompressorFields(ReadingFields, BaseDocumentCompressor):
        """A compressor with the kernel's options as fields."""

        variables: Any = None

else:
    RunnableFields = _with_options("RunnableFields", RunnableSerializable[Inputs, Outputs])
    CompressorFields = _with_options("CompressorFields", BaseDocumentCompressor)
