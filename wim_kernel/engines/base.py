"""The engine protocol: extend a reading by a chunk, and decode a set of branches at once.

Everything the kernel asks of a model is one of these two verbs. The algorithm in ``wim_kernel.kernel`` is written above
them, once; an engine brings a model, a cache and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from transformers import GenerationConfig

from wim_kernel.engines.packed import Packed
from wim_kernel.text.run_text import Prompt, Text

Head = tuple[int, int]
"""An attention head: its layer and its number in the layer, both from 0."""


@dataclass(frozen=True)
class AttentionProbe:
    """Asks how much attention the scored run's tokens put on spans of the text before them.

    Attributes:
        cuts: ascending positions, counted from the beginning of the prefix and on through the branch's own prompt.
            Span ``i`` reaches from ``cuts[i]`` to ``cuts[i + 1]``.
        heads: in which heads.
    """

    cuts: tuple[int, ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Scores:
    """What a branch's prompt told before anything was generated.

    Attributes:
        likelihood: mean log-probability of the tokens of the scored run of the prompt, in nats; None if none was asked.
        choices: probability of each choice as the reply's first token, normalised over the choices.
        attention: what the branch's probe found, (heads, spans): mean over the scored tokens of the attention that
            falls on a span, 0 to 1; None without a probe, or where the engine cannot see attention.
    """

    likelihood: float | None = None
    choices: tuple[float, ...] = ()
    attention: np.ndarray[Any, np.dtype[np.float32]] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Branch:
    """A prompt and a generation that continue from a chunk boundary of a reading.

    Attributes:
        at: the boundary, as a number of tokens of the prefix.
        prompt: the user's turn after the document; the engine ends the turn as the model's chat template does.
        cue: how the reply begins for a base model, which has no turns.
        scored: index of the run of ``prompt`` whose likelihood is wanted.
        choices: texts that compete to be the reply's first token. When the branch goes on, the first of them is
            taken as decided, and generation continues after it.
        generation: how to generate; None to measure only.
        json_schema: a JSON schema, as text, that the generated text has to fit.
        probe: which attention of the scored run is wanted.
    """

    at: int
    prompt: Prompt
    cue: str = ""
    scored: int | None = None
    choices: tuple[str, ...] = ()
    generation: GenerationConfig | None = None
    json_schema: str | None = None
    probe: AttentionProbe | None = None


@dataclass(frozen=True)
class Decoded:
    """A branch's end.

    Attributes:
        scores: see `Scores`.
        suffix_ids: the tokens the model saw after the prefix and before the generated text, a decision included.
        token_ids: the generated tokens, without end-of-sequence; none if a server does not say them.
        text: the generated text.
        generated: whether the gate let the branch go on.
        prompt_tokens: how many tokens the prompt had, where that is not the number of ``suffix_ids``.
        output_tokens: how many were generated, where that is not the number of ``token_ids``.
        recomputed: tokens of the prefix that a server had lost, or had in part of a block, and ran again.
    """

    scores: Scores
    suffix_ids: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    text: str = ""
    generated: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    recomputed: int = 0


@dataclass(frozen=True)
class Progress:
    """What one step of decoding brought for one branch: new text, and at the end the whole."""

    branch: int
    text: str = ""
    done: Decoded | None = field(default=None)


Gate = Callable[[Sequence[Scores]], Sequence[bool]]
"""Given the scores of all branches of a batch, says which go on to generate."""


class Prefix(Protocol):
    """The cache of a reading: tokens that were run through the model, once."""

    @property
    def tokens(self) -> int:
        """How many tokens the prefix holds."""


PrefixT = TypeVar("PrefixT", bound=Prefix)


class Engine(Protocol[PrefixT]):
    """A model with a cache: two verbs, and what it takes to speak to it in text."""

    model_name: str
    """What the model is called, for traces and bills."""
    window: int | None
    """Most tokens the model can attend to; None if it has no limit."""
    margin_batch: int
    """How many chunks' margins share a batch by default while a fresh document is streamed."""
    max_branches: int
    """Most branches decoded together by default."""
    budget_bytes: int
    """Bytes that all live readings may take by default where the engine keeps them."""
    host_budget_bytes: int
    """Bytes that packed readings may take by default in the host's memory; 0 where the engine keeps its own there."""
    measures_likelihood: bool
    """Whether branches can say how likely a run of their prompt was."""
    writes_as_it_reads: bool
    """Whether margins are best written before the next chunk is read, whoever waits for them."""
    shows_tokens: bool
    """Whether the ids here are those that the model sees."""
    heads: tuple[Head, ...]
    """Heads whose attention branches can report; none where it cannot be seen."""

    @property
    def decides_by(self) -> str:
        """What a decision is taken from: the ``"first token"``'s probabilities, or the ``"text"``."""

    @property
    def says_cached(self) -> bool | None:
        """Whether it is known how many tokens were in the cache already; None before anything was read."""

    def head(self, system: str, lead: str) -> list[int]:
        """Tokens that stand before every document: the chat template's opening, ``system`` and ``lead``."""

    def encode(self, text: Text) -> list[int]:
        """Tokens of a run of text, without any that the tokenizer would add around it."""

    def placed(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of document text, as ``encode`` gives them, and the character at which each begins.

        Asked only of engines that see attention.
        """

    def suffix(self, branch: Branch) -> list[int]:
        """Tokens of a branch's prompt, to the point where the reply begins."""

    def check_schema(self, json_schema: str, generation: GenerationConfig) -> None:
        """See that what is generated can be made to fit a JSON schema, before anything is read; raises if not."""

    def open(self) -> PrefixT:
        """An empty prefix."""

    def prefix_bytes(self, tokens: int) -> int:
        """Bytes that a prefix of ``tokens`` tokens takes."""

    def reserve(self, prefix: PrefixT, tokens: int) -> None:
        """Make room in a prefix for ``tokens`` tokens in all."""

    def fork(self, prefix: PrefixT, tokens: int) -> PrefixT:
        """A prefix of its own with the first ``tokens`` tokens, a chunk boundary, of another."""

    def identity(self) -> dict[str, str]:
        """What a prefix depends on beside its tokens: the model, its weights, its type. Equal means interchangeable."""

    def pack(self, prefix: PrefixT, tokens: int) -> Packed:
        """The first ``tokens`` tokens, a chunk boundary, as plain data in the host's memory."""

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> PrefixT:
        """A prefix of packed data and its tokens ``ids``, a leading part of what was packed, with room for ``room``.

        Raises:
            KeyError: if it was not packed at the end of ``ids``.
        """

    def extend(self, prefix: PrefixT, pieces: Sequence[Sequence[int]], start: int) -> range:
        """Run the next block of ``pieces``, the tokens of ``prefix`` from ``start`` on; says which positions it ran.

        They begin before the block where the engine had lost what stands before it, and ran that again.

        Branches may continue from the end of every piece. Callers that read the same pieces take turns: each call runs
        a block that nobody has run, if there is one.
        """

    def decode(
        self, prefix: PrefixT, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Decode branches together; yields after every step, and stops when closed.

        First runs all prompts and measures scores, then asks ``gate`` which branches go on, then generates.
        """


AnyEngine = Engine[Any]
