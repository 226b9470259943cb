"""What a method gives back for one question. Plain values, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """One prompt given to the model, and what the model wrote.

    Attributes:
        prompt: the prompt. Chunks of the document are named, as in ``[chunk 3]``, and not repeated.
        output: what was written; empty where only a score was read off.
    """

    prompt: str
    output: str


@dataclass(frozen=True)
class Tokens:
    """Tokens that a question cost, by kind.

    Attributes:
        prefill: document tokens run through the model as part of a reading.
        cached: document tokens found in the cache.
        prompt: tokens of prompts run through the model. A chain's prompts include the document's text.
        output: tokens written.
    """

    prefill: int = 0
    cached: int = 0
    prompt: int = 0
    output: int = 0


@dataclass(frozen=True)
class ChunkScore:
    """How a method judged one chunk.

    Attributes:
        index: the chunk's position in the document, from 0.
        score: how useful the method takes the chunk to be: a margin's relevance, or a retriever's score.
        kept: whether the chunk, or the margin about it, was chosen for the answer's prompt.
        text: the margin's text; empty for a retriever.
    """

    index: int
    score: float
    kept: bool
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """A method's answer to one question, and its cost.

    Attributes:
        answer: the text that is scored.
        tokens: tokens by kind.
        calls: every prompt given to the model.
        chunks: how the method judged each chunk; empty for a method that judges none.
        calibrated: whether the chunks' scores are meant as probabilities.
    """

    answer: str
    tokens: Tokens
    calls: tuple[Call, ...] = field(repr=False)
    chunks: tuple[ChunkScore, ...] = ()
    calibrated: bool = False
