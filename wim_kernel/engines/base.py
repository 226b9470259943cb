"""The engine protocol: `Engine.extend` prefills a prefix, `Engine.decode` decodes a set of branches of it.

The algorithm in ``wim_kernel.reading`` is written once, on top of these two methods. An engine brings a model, a cache
and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from wim_kernel.common.margins import Usage
from wim_kernel.engines.generation import Generation
from wim_kernel.engines.packed import Packed
from wim_kernel.text.run_text import Prompt, Text

if TYPE_CHECKING:
    import numpy as np

Head = tuple[int, int]
"""An attention head: the index of its layer, and its index in the layer."""


@dataclass(frozen=True)
class AttentionProbe:
    """A request to measure how much attention the scored tokens put on spans of the text before them.

    Attributes:
        cuts: ascending positions, counted from the beginning of the prefix on through the branch's own prompt. Span
            ``i`` reaches from ``cuts[i]`` to ``cuts[i + 1]``.
        heads: heads to measure.
    """

    cuts: tuple[int, ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Scores:
    """Measurements on a branch's prompt, before anything is generated.

    Attributes:
        likelihood: mean log-probability of the scored tokens of the prompt, in nats; None if the branch has none.
        choices: probability of each choice as the reply's first token, normalised over the choices.
        attention: attention mass on each span of the branch's probe, 0 to 1, averaged over the scored tokens, (heads,
            spans); None without a probe, or if the engine cannot measure attention.
        rating: how much the chunk helps, 0 to 1, as the model says itself; None unless it was asked.
    """

    likelihood: float | None = None
    choices: tuple[float, ...] = ()
    attention: np.ndarray[Any, np.dtype[np.float32]] | None = field(default=None, compare=False)
    rating: float | None = None


@dataclass(frozen=True)
class Branch:
    """A prompt, and a generation after it, that continue from a chunk boundary of a prefix.

    Attributes:
        at: position of the boundary: the number of prefix tokens that the branch sees.
        prompt: runs of the user's turn after the document; the engine ends the turn as the model's chat template does.
        cue: beginning of the reply for a base model, which has no turns.
        scored: index of the run of ``prompt`` whose likelihood is measured; None for no measurement.
        choices: texts that compete to be the reply's first token. If the branch goes on to generate, the reply begins
            with the first of them.
        generation: settings of the generation; None to measure only.
        json_schema: JSON schema, as text, to which the generated text is constrained.
        citable: how many numbered passages the generated text may cite: an engine that decodes in process writes no
            marker such as ``[4]`` of another number, and others may. None if markers mean nothing.
        probe: attention to measure on the scored run.
        rates: for engines that rate: ``"note"`` or ``"quotes"``, what the reply holds beside its rating of the chunk.
    """

    at: int
    prompt: Prompt
    cue: str = ""
    scored: int | None = None
    choices: tuple[str, ...] = ()
    generation: Generation | None = None
    json_schema: str | None = None
    citable: int | None = None
    probe: AttentionProbe | None = None
    rates: Literal["", "note", "quotes"] = ""


@dataclass(frozen=True)
class Decoded:
    """The result of a branch.

    Attributes:
        scores: measurements on the prompt.
        suffix_ids: token ids between the prefix and the generated text, those of a decided choice included.
        token_ids: generated token ids, without EOS; empty if a server does not report them.
        text: the generated text.
        generated: whether the gate let the branch generate.
        prompt_tokens: number of tokens of the prompt, if it is not the number of ``suffix_ids``.
        output_tokens: number of generated tokens, if it is not the number of ``token_ids``.
        recomputed: number of prefix tokens that a server ran beyond ``prefilled``: again, because they were evicted
            from its prefix cache or only partly filled one of its blocks; below 0 if it ran fewer.
        prefilled: number of prefix tokens that `Engine.extend` left to the first branch that needs them, if this is it.
        billed: what the branch cost, where an engine's branches are requests that are billed one by one.
        quotes: sentences that the reply says stand in the chunk, for branches that rate.
    """

    scores: Scores
    suffix_ids: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    text: str = ""
    generated: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    recomputed: int = 0
    prefilled: int = 0
    billed: Usage | None = None
    quotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """The progress of one branch in one step.

    Attributes:
        branch: index of the branch.
        text: new text.
        done: the result, if the branch has ended.
    """

    branch: int
    text: str = ""
    done: Decoded | None = field(default=None)


Gate = Callable[[Sequence[int], Sequence[Scores]], Sequence[bool]]
"""Decides which branches generate, given the indices of branches that were measured together, and their scores."""


class Prefix(Protocol):
    """A prefix in the engine's cache: tokens whose keys and values are computed."""

    @property
    def tokens(self) -> int:
        """The number of tokens."""


PrefixT = TypeVar("PrefixT", bound=Prefix)


class Engine(Protocol[PrefixT]):
    """A model with a prefix cache and a tokenizer."""

    model_name: str
    """The name of the model, for traces and usage."""
    window: int | None
    """Most tokens of a context; None if the model has no limit."""
    margin_batch: int
    """Default number of chunks whose margins share a batch while a fresh document is streamed."""
    max_branches: int
    """Default for the most branches that are decoded together."""
    budget_bytes: int
    """Default limit of the bytes of all prefixes in the engine's cache."""
    host_budget_bytes: int
    """Default limit of the bytes of packed prefixes in host memory; 0 if the engine's own cache is there."""
    writes_as_it_reads: bool
    """Whether margins should always be written before the next chunk is prefilled."""
    joins_chunks: bool
    """Whether `extend` runs short chunks together in one block."""
    reads_on_demand: bool
    """Whether `extend` leaves tokens to the first branch that needs them."""
    shows_tokens: bool
    """Whether the token ids of this protocol are the ids that the model sees."""
    reads_text: bool
    """Whether the model predicts text better than chance. One of random weights does not."""
    rates: bool
    """Whether the model rates a chunk in the reply that holds its note, and branches are billed one by one."""
    max_calls: int | None
    """Most requests to one question, for engines that rate; None for no limit."""
    first_look: bool
    """Whether shared words decide which chunks are rated at all, for engines that rate."""
    heads: tuple[Head, ...]
    """Heads whose attention can be measured; empty if the engine cannot measure attention."""

    @property
    def measures_likelihood(self) -> bool:
        """Whether `Scores.likelihood` can be measured."""

    @property
    def decides_by(self) -> str:
        """How the probabilities of choices are obtained: from the reply's ``"first token"``, or from its ``"text"``."""

    @property
    def reports_cached(self) -> bool | None:
        """Whether the engine reports how many tokens were cached; None if unknown before the first prefill."""

    def head(self, system: str, lead: str) -> list[int]:
        """Token ids that precede every document: the chat template's opening, ``system`` and ``lead``."""

    def encode(self, text: Text) -> list[int]:
        """Token ids of a text, without any that the tokenizer would add around it."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of document text, as from ``encode``, and the character offset at which each begins.

        Called only if `heads` is not empty.
        """

    def suffix(self, branch: Branch) -> list[int]:
        """Token ids of a branch's prompt, up to where the reply begins."""

    def check_schema(self, json_schema: str, generation: Generation) -> None:
        """Check that generation can be constrained to a JSON schema; raises an error if not."""

    def open(self) -> PrefixT:
        """An empty prefix."""

    def prefix_bytes(self, tokens: int, boundaries: int = 0) -> int:
        """The size in bytes of a prefix of ``tokens`` tokens from which branches can start at ``boundaries`` places."""

    def reserve(self, prefix: PrefixT, tokens: int) -> None:
        """Make room in a prefix for ``tokens`` tokens in all."""

    def fork(self, prefix: PrefixT, tokens: int) -> PrefixT:
        """A copy of the first ``tokens`` tokens of a prefix, which end at a chunk boundary."""

    def identity(self) -> dict[str, str]:
        """Everything but its tokens on which a prefix depends: the model, its weights, its dtype.

        Prefixes of engines with equal identities are interchangeable.
        """

    def calibration_key(self) -> str | None:
        """The name under which the calibration of the model's relevance signals is kept, the same for every dtype.

        None if the engine does not see attention.
        """

    def pack(self, prefix: PrefixT, tokens: int) -> Packed:
        """Copy the first ``tokens`` tokens, which end at a chunk boundary, to host memory as plain data."""

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> PrefixT:
        """Make a prefix of the first tokens of packed data.

        Args:
            packed: the packed data.
            ids: token ids of the new prefix, which the packed data begins with.
            room: number of tokens to make room for.

        Raises:
            KeyError: if the packed data has no boundary at the end of ``ids``.
        """

    def extend(self, prefix: PrefixT, chunks: Sequence[Sequence[int]], start: int) -> range:
        """Run the next block of ``chunks`` that the prefix does not hold yet.

        Branches can start at the end of each chunk. Several callers may extend a prefix by the same chunks: each call
        runs a block that no other call has run, if there is one left.

        Args:
            prefix: the prefix.
            chunks: token ids of chunks.
            start: position of the first chunk in the prefix.

        Returns:
            The positions that were run. They begin before the block if the engine had to run evicted tokens again.
        """

    def tokens_read(self, prefix: PrefixT) -> int:
        """How many of a prefix's tokens have been run, counted from its start: all of them if `extend` runs them."""

    def settle(self, prefix: PrefixT) -> int:
        """Run what `extend` has left to the first branch that needs it, if anything; see `Decoded.prefilled`.

        Returns:
            How many of these tokens were run.
        """

    @property
    def prices(self) -> tuple[float, float]:
        """The price of a token written to the cache and of one read from it, in tokens of plain input.

        Asked for only if `rates`; so is `foresee`.
        """

    def foresee(self, prefix: PrefixT, branches: Sequence[Branch]) -> Usage:
        """What branches would cost, by what the cache should hold now."""

    def holds(self, prefix: PrefixT, tokens: int) -> bool:
        """Whether the first ``tokens`` tokens of a prefix are in the cache now. Called only if `rates`."""

    def decode(
        self, prefix: PrefixT, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Decode branches together; yields after each step, and stops when closed.

        Runs prompts and measures their scores, calls ``gate`` for which branches go on, then generates. An engine may
        do so for one group of branches after another; it calls ``gate`` once for each group, and may do so from another
        thread, in the caller's context (``contextvars``).
        """


AnyEngine = Engine[Any]
