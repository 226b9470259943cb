"""Writing in the Margins for long documents: one prefill, notes at chunk boundaries, an answer from the kept notes.

The public names; see `WimKernel`. Each name is imported at its first use, so that importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wim_kernel.common.chunk import Chunk, Span
    from wim_kernel.common.citations import Citation
    from wim_kernel.common.errors import (
        ChatModelError,
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
    from wim_kernel.common.events import (
        Answered,
        AnswerToken,
        ChunkRead,
        Event,
        MarginRevised,
        MarginsDone,
        MarginWritten,
    )
    from wim_kernel.common.margins import Margin, Timings, Usage, WimResult
    from wim_kernel.common.notebook import ashow, show
    from wim_kernel.common.saved import event_from_dict
    from wim_kernel.kernel import WimKernel
    from wim_kernel.reading import Reading
    from wim_kernel.run.estimate import Estimate
    from wim_kernel.run.options import Options
    from wim_kernel.run.relevance import (
        Decision,
        Evidence,
        EvidenceProbability,
        QuestionLikelihood,
        Rating,
        Relevance,
        SecondCall,
    )
    from wim_kernel.text.prompts import PROMPTS, Frame, Prompts

__all__ = [
    "PROMPTS",
    "AnswerToken",
    "Answered",
    "ChatModelError",
    "Chunk",
    "ChunkError",
    "ChunkRead",
    "Citation",
    "ContextOverflowError",
    "Decision",
    "DeviceMemoryError",
    "EmptyDocumentError",
    "Estimate",
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
    "Rating",
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
    "ashow",
    "event_from_dict",
    "show",
]

_HOMES = {
    "common.chunk": ("Chunk", "Span"),
    "common.citations": ("Citation",),
    "common.errors": (
        "ChatModelError",
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
    "common.events": (
        "Answered",
        "AnswerToken",
        "ChunkRead",
        "Event",
        "MarginRevised",
        "MarginsDone",
        "MarginWritten",
    ),
    "kernel": ("WimKernel",),
    "reading": ("Reading",),
    "common.margins": ("Margin", "Timings", "Usage", "WimResult"),
    "common.notebook": ("ashow", "show"),
    "common.saved": ("event_from_dict",),
    "text.prompts": ("PROMPTS", "Frame", "Prompts"),
    "run.relevance": (
        "Decision",
        "Evidence",
        "EvidenceProbability",
        "QuestionLikelihood",
        "Rating",
        "Relevance",
        "SecondCall",
    ),
    "run.estimate": ("Estimate",),
    "run.options": ("Options",),
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
