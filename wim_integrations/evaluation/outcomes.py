"""Outcomes: a method's answer to one question, with its calls, tokens and scores. Plain values, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """One prompt given to the model, and its output.

    Attributes:
        prompt: the prompt, with names such as ``[chunk 3]`` in place of the document's chunks.
        output: the output; empty if the model only scored.
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
        output: tokens generated.
    """

    prefill: int = 0
    cached: int = 0
    prompt: int = 0
    output: int = 0


@dataclass(frozen=True)
class ChunkScore:
    """A method's score of one chunk.

    Attributes:
        index: the chunk's index in the document.
        score: a margin's relevance, or a retriever's score.
        kept: whether the chunk, or the margin about it, was chosen for the answer's prompt.
        text: the margin's text; empty for a retriever.
    """

    index: int
    score: float
    kept: bool
    text: str = ""


@dataclass(frozen=True)
class Reference:
    """A citation in an answer, checked against the document.

    Attributes:
        quote: the cited words.
        margin: the index of the margin that is cited, which is its chunk's.
        in_source: whether the chunk has the quote, character for character.
        located: how the margin's words were found in the chunk: ``"exact"``, ``"fuzzy"`` or ``"unlocated"``.
        marked: whether the model wrote a marker; otherwise a sentence of the answer is the quote.
    """

    quote: str
    margin: int
    in_source: bool
    located: str
    marked: bool


@dataclass(frozen=True)
class Outcome:
    """A method's answer to one question, and its cost.

    Attributes:
        answer: the text that is scored.
        tokens: tokens by kind.
        calls: every prompt given to the model.
        chunks: the method's score of each chunk; empty for a method without scores.
        calibrated: whether the chunks' scores are probabilities.
        references: the answer's citations; None for a method that was not asked for any.
    """

    answer: str
    tokens: Tokens
    calls: tuple[Call, ...] = field(repr=False)
    chunks: tuple[ChunkScore, ...] = ()
    calibrated: bool = False
    references: tuple[Reference, ...] | None = None
