"""Writing in the Margins for long documents: one prefill, notes at every chunk boundary, an answer that stands on them.

What users import. See `WimKernel`. Names load when they are first used, so that importing this costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wim_kernel.chunks import Chunk, Span
    from wim_kernel.errors import (
        ChunkError,
        ContextOverflowError,
        DeviceMemoryError,
        EmptyDocumentError,
        ForkError,
        MarginsError,
        MemoryBudgetError,
        MissingInputError,
        ModelNotFoundError,
        NotPicklableError,
        OptionError,
        ReadingFileError,
        SchemaError,
        ServerError,
        UnknownOptionError,
        UnsupportedModelError,
        WimError,
    )
    from wim_kernel.events import (
        Answered,
        AnswerToken,
        ChunkRead,
        Event,
        MarginRevised,
        MarginsDone,
        MarginWritten,
    )
    from wim_kernel.kernel import Reading, WimKernel
    from wim_kernel.margins import Margin, Timings, Usage, WimResult
    from wim_kernel.prompts import PROMPTS, Frame, Prompts
    from wim_kernel.relevance import (
        Decision,
        Evidence,
        EvidenceProbability,
        QuestionLikelihood,
        Relevance,
        SecondCall,
    )
    from wim_kernel.settings import Options

__all__ = [
    "PROMPTS",
    "AnswerToken",
    "Answered",
    "Chunk",
    "ChunkError",
    "ChunkRead",
    "ContextOverflowError",
    "Decision",
    "DeviceMemoryError",
    "EmptyDocumentError",
    "Event",
    "Evidence",
    "EvidenceProbability",
    "ForkError",
    "Frame",
    "Margin",
    "MarginRevised",
    "MarginWritten",
    "MarginsDone",
    "MarginsError",
    "MemoryBudgetError",
    "MissingInputError",
    "ModelNotFoundError",
    "NotPicklableError",
    "OptionError",
    "Options",
    "Prompts",
    "QuestionLikelihood",
    "Reading",
    "ReadingFileError",
    "Relevance",
    "SchemaError",
    "SecondCall",
    "ServerError",
    "Span",
    "Timings",
    "UnknownOptionError",
    "UnsupportedModelError",
    "Usage",
    "WimError",
    "WimKernel",
    "WimResult",
]

_HOMES = {
    "chunks": ("Chunk", "Span"),
    "errors": (
        "ChunkError",
        "ContextOverflowError",
        "DeviceMemoryError",
        "EmptyDocumentError",
        "MarginsError",
        "ForkError",
        "MemoryBudgetError",
        "MissingInputError",
        "ModelNotFoundError",
        "NotPicklableError",
        "OptionError",
        "ReadingFileError",
        "SchemaError",
        "ServerError",
        "UnknownOptionError",
        "UnsupportedModelError",
        "WimError",
    ),
    "events": (
        "Answered",
        "AnswerToken",
        "ChunkRead",
        "Event",
        "MarginRevised",
        "MarginsDone",
        "MarginWritten",
    ),
    "kernel": ("Reading", "WimKernel"),
    "margins": ("Margin", "Timings", "Usage", "WimResult"),
    "prompts": ("PROMPTS", "Frame", "Prompts"),
    "relevance": (
        "Decision",
        "Evidence",
        "EvidenceProbability",
        "QuestionLikelihood",
        "Relevance",
        "SecondCall",
    ),
    "settings": ("Options",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
