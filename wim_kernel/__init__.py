"""Writing in the Margins for long documents: one prefill, notes at every chunk boundary, an answer that stands on them.

What users import. See `WimKernel`.
"""

from wim_kernel.chunks import Chunk, Span
from wim_kernel.errors import (
    ContextOverflowError,
    EmptyDocumentError,
    MemoryBudgetError,
    ModelNotFoundError,
    UnsupportedModelError,
    WimError,
)
from wim_kernel.events import Answered, AnswerToken, ChunkRead, Event, MarginWritten
from wim_kernel.kernel import Reading, WimKernel
from wim_kernel.margins import Margin, Timings, Usage, WimResult
from wim_kernel.prompts import PROMPTS, Frame, Prompts
from wim_kernel.relevance import Decision, Evidence, QuestionLikelihood, Relevance, SecondCall
from wim_kernel.settings import Options

__all__ = [
    "PROMPTS",
    "AnswerToken",
    "Answered",
    "Chunk",
    "ChunkRead",
    "ContextOverflowError",
    "Decision",
    "EmptyDocumentError",
    "Event",
    "Evidence",
    "Frame",
    "Margin",
    "MarginWritten",
    "MemoryBudgetError",
    "ModelNotFoundError",
    "Options",
    "Prompts",
    "QuestionLikelihood",
    "Reading",
    "Relevance",
    "SecondCall",
    "Span",
    "Timings",
    "UnsupportedModelError",
    "Usage",
    "WimError",
    "WimKernel",
    "WimResult",
]
