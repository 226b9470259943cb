"""The in-process engine: runs a Hugging Face causal language model and keeps prefixes on its device."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import psutil
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from wim_kernel.common import forks
from wim_kernel.common.copying import Shared
from wim_kernel.common.errors import OptionError
from wim_kernel.common.margins import Usage
from wim_kernel.engines.base import Branch, Gate, Progress
from wim_kernel.engines.codec import ChatCodec
from wim_kernel.engines.generation import Generation
from wim_kernel.engines.gguf import copies_folder
from wim_kernel.engines.loading import load_model
from wim_kernel.engines.loading_options import Attention, EngineOptions, KeptDtype, LocalOptions, Weights
from wim_kernel.engines.local.backends.base import AttentionBackend
from wim_kernel.engines.local.backends.choose import choose_backend
from wim_kernel.engines.local.backends.torch_backend import TorchBackend
from wim_kernel.engines.local.capacity import budget_of, memory_for, window_of
from wim_kernel.engines.local.cpu_dtype import faster_dtype
from wim_kernel.engines.local.decode.decoder import PromptLimits, Row, decode
from wim_kernel.engines.local.decode.fair_lock import FairLock
from wim_kernel.engines.local.decode.json_grammar import Grammars
from wim_kernel.engines.local.decode.marker_grammar import MarkerGrammars
from wim_kernel.engines.local.decode.sampling import Policy, Sampler
from wim_kernel.engines.local.decode.step_batcher import StepBatcher
from wim_kernel.engines.local.kept_check import Found, KeptCheck
from wim_kernel.engines.local.model.identity import Version, rounded_digest, version_of, weights_digest
from wim_kernel.engines.local.model.quantising import check as check_weights
from wim_kernel.engines.local.model.quantising import quantise, quantise_checked
from wim_kernel.engines.local.model.runner import ModelRunner
from wim_kernel.engines.local.model.wrapping import unwrapped
from wim_kernel.engines.local.prefix.shared import SharedPrefix
from wim_kernel.engines.local.prefix.snapshot import SnapshotPrefix
from wim_kernel.engines.local.selfcheck import choose_cache, reads_text
from wim_kernel.engines.packed import Packed
from wim_kernel.text.run_text import Text

logger = logging.getLogger(__name__)

LocalPrefix = SharedPrefix | SnapshotPrefix


class LocalEngine(Shared):
    """Runs a model in this process.

    Args:
        model: a causal LM, also with adapters around it or compiled; put in eval mode, otherwise left as it is.
        tokenizer: its tokenizer.
        window: see `EngineOptions`.
        cache_mode: see `EngineOptions`.
        attention: see `EngineOptions`.
        weights: see `EngineOptions`.
        kept_dtype: see `EngineOptions`.
        path: see `EngineOptions`.
        kept: results of former checks of this very model.

    Raises:
        UnsupportedModelError: if branches do not give the same results as the model's plain forward pass.
        ValueError: if the weights cannot be quantised as ``weights`` says.
    """

    measures_likelihood = True
    decides_by = "first token"
    writes_as_it_reads = False
    joins_chunks = True
    reads_on_demand = False
    rates = False
    max_calls: int | None = None
    first_look = False
    shows_tokens = True
    reports_cached: bool | None = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int | None = None,
        cache_mode: str | None = None,
        attention: Attention = "auto",
        weights: Weights | None = None,
        kept_dtype: KeptDtype | None = None,
        path: str | None = None,
        kept: KeptCheck | None = None,
    ) -> None:
        if path is not None:
            warnings.warn("The option path is called cache_mode.", DeprecationWarning, stacklevel=4)
            cache_mode = cache_mode or path
        self.model: PreTrainedModel = unwrapped(model)
        self.model.train(False)
        self._unquantised_key = rounded_digest(self.model) if weights is not None else None
        check_weights(self.model, weights)
        if weights != "fp8":
            quantise(self.model, weights)
        self.tokenizer = tokenizer
        self.codec = ChatCodec(tokenizer)
        self.lock = FairLock()
        self.runner = ModelRunner(self.model)
        forks.check_device(self.runner.device)
        self.backend: AttentionBackend = choose_backend(attention, self.runner)
        self._identity: tuple[Version, dict[str, str]] | None = None
        self._kept_grammars: dict[frozenset[int], Grammars] = {}
        self._kept_markers: dict[frozenset[int], MarkerGrammars] = {}
        self.model_name = PurePath(self.model.name_or_path or "").name or type(self.model).__name__
        self.window = window or window_of(self.model.config.get_text_config())
        self.on_cpu = self.runner.device.type == "cpu"
        self.margin_batch = 2 if self.on_cpu else 4
        self.max_branches = 16 if self.on_cpu else 64
        self.block_tokens = 512 if self.on_cpu else 4096
        self.logit_bytes = 2**27 if self.on_cpu else 2**29
        self.budget_bytes = budget_of(self.runner.device)
        self.host_budget_bytes = 0 if self.on_cpu else int(0.5 * psutil.virtual_memory().available)
        self._check(cache_mode, kept, may_fall_back=attention == "auto")
        self.kept_dtype = _checked_kept(kept_dtype, self.cache_mode)
        if weights == "fp8":  # after the check, which could not tell a fault from the rounding of the inputs
            self.backend.forget()
            self.runner.uninstall()
            quantise_checked(self.model, weights, self.runner.device)
            self.budget_bytes = budget_of(self.runner.device)
        if self.cache_mode == "snapshot":
            self.max_branches = 4  # each copies the prefix
        self.batcher = StepBatcher(self.lock, max_rows=64)
        forks.register(self)

    def _check(self, cache_mode: str | None, kept: KeptCheck | None, *, may_fall_back: bool) -> None:
        """Find out how the model's cache can be used, unless it is known of this very model that it shares a prefix."""
        kept = kept if isinstance(self.backend, TorchBackend) else None
        found = kept.find() if kept is not None else None
        if found is not None:
            self.cache_mode, self.reads_text = "shared", found.reads_text
        else:
            checked = choose_cache(self.runner, self.backend, cache_mode, may_fall_back=may_fall_back)
            self.cache_mode, self.backend = checked.mode, checked.backend
            self.reads_text = reads_text(self.model, self.codec, self.runner.device)
            found = Found(checked.bytes_per_token, checked.bytes_per_boundary, checked.heads, self.reads_text)
            if kept is not None and self.cache_mode == "shared":
                kept.keep(found)
        self.heads = found.heads
        self._bytes_per_token, self._bytes_per_boundary = found.bytes_per_token, found.bytes_per_boundary

    def renew_after_fork(self) -> None:
        """Mark the engine as lost if the model is on an accelerator, whose memory stays with the parent process."""
        if self.runner.device.type != "cpu" or self.runner.spread:
            forks.lose(self)
            forks.lose(self.lock)

    @classmethod
    def from_pretrained(cls, name: str, **options: Unpack[LocalOptions]) -> LocalEngine:
        """Load a model by name; see `wim_kernel.engines.loading.load_model`."""
        given: dict[str, Any] = dict(options)
        own = {key: given.pop(key) for key in EngineOptions.__annotations__ if key in given}
        model, tokenizer = load_model(name, cpu_dtype=faster_dtype, **given)
        folder = copies_folder(given.get("cache_dir")).parent
        kept = None if given.get("trust_remote_code") else KeptCheck(model, own, folder)
        return cls(model, tokenizer, **own, kept=kept)

    # -- text ---------------------------------------------------------------------------------------------------------

    def head(self, system: str, lead: str) -> list[int]:
        """Token ids that precede every document."""
        return self.codec.head(system, lead)

    def encode(self, text: Text) -> list[int]:
        """Token ids of a text."""
        return self.codec.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of document text, and the character offset at which each begins."""
        return self.codec.encode_with_offsets(text)

    def suffix(self, branch: Branch) -> list[int]:
        """Token ids of a branch's prompt, up to where the reply begins."""
        return self.codec.flat_suffix(branch)

    def check_schema(self, json_schema: str, generation: Generation) -> None:
        """Check that generation can be constrained to a JSON schema.

        Raises:
            SchemaError: if there is no grammar for the schema, or its shortest text has too many tokens.
            ImportError: if llguidance is not installed.
        """
        policy = Policy(self.model, self.tokenizer, generation)
        self._grammars(policy.eos).processor(json_schema, 0, policy.max_new_tokens)

    def _grammars(self, eos: frozenset[int]) -> Grammars:
        """Grammars for texts that end with one of ``eos``; cached, since they take a second to make."""
        ends = eos or frozenset(filter(None, [self.tokenizer.eos_token_id]))
        if ends not in self._kept_grammars:
            vocabulary = self.model.config.get_text_config().vocab_size
            self._kept_grammars[ends] = Grammars(self.tokenizer, vocabulary, ends)
        return self._kept_grammars[ends]

    def _markers(self, eos: frozenset[int]) -> MarkerGrammars:
        """Masks for texts with markers; cached."""
        if eos not in self._kept_markers:
            vocabulary = self.model.config.get_text_config().vocab_size
            self._kept_markers[eos] = MarkerGrammars(self.tokenizer, vocabulary, eos)
        return self._kept_markers[eos]

    # -- the two verbs ------------------------------------------------------------------------------------------------

    def open(self) -> LocalPrefix:
        """An empty prefix."""
        return (
            SharedPrefix(self.runner, self.backend)
            if self.cache_mode == "shared"
            else SnapshotPrefix(self.model)
        )

    def prefix_bytes(self, tokens: int, boundaries: int = 0) -> int:
        """See `Engine.prefix_bytes`. Layers that keep states keep a copy of them at each boundary."""
        return tokens * self._bytes_per_token + boundaries * self._bytes_per_boundary

    def reserve(self, prefix: LocalPrefix, tokens: int) -> None:
        """Make room in a prefix for ``tokens`` tokens in all."""
        with self.lock, memory_for(f"hold {tokens:,} tokens"):
            prefix.reserve(tokens)

    def fork(self, prefix: LocalPrefix, tokens: int) -> LocalPrefix:
        """A copy of the first ``tokens`` tokens of a prefix, which end at a chunk boundary."""
        with self.lock:
            return prefix.fork(tokens)

    def identity(self) -> dict[str, str]:
        """See `Engine.identity`. The weights are identified by samples of each tensor."""
        version = version_of(self.model)
        if self._identity is None or self._identity[0] != version:
            self._identity = version, self._identify()
        return self._identity[1]

    def _identify(self) -> dict[str, str]:
        return {
            "model": type(self.model).__name__,
            "revision": str(getattr(self.model.config, "_commit_hash", None)),
            "weights": weights_digest(self.model),
            "dtype": str(self.model.dtype),
            "path": self.cache_mode,
            **({} if self.kept_dtype is None else {"kept_dtype": self.kept_dtype}),
        }

    def calibration_key(self) -> str | None:
        """A digest of the weights that is the same for every dtype, and before quantising; None without heads."""
        return self._unquantised_key or rounded_digest(self.model) if self.heads else None

    def pack(self, prefix: LocalPrefix, tokens: int) -> Packed:
        """Copy the first ``tokens`` tokens, which end at a chunk boundary, to host memory; see ``kept_dtype``."""
        return prefix.pack(tokens, self.kept_dtype)

    def unpack(self, packed: Packed, ids: Sequence[int], room: int) -> LocalPrefix:
        """See `Engine.unpack`."""
        prefix = self.open()
        with memory_for(f"bring back {len(ids):,} tokens"):
            prefix.unpack(packed, ids, room)
        return prefix

    def extend(self, prefix: LocalPrefix, chunks: Sequence[Sequence[int]], start: int) -> range:
        """See `Engine.extend`.

        A block may reach over the end of a chunk, unless the cache mode takes a snapshot there. It is an eighth longer
        than usual if it is the last.
        """
        with self.lock.held_by(prefix.account):
            ends = list(itertools.accumulate(map(len, chunks), initial=start))[1:]
            before = prefix.tokens
            limit = (
                ends[-1] if self._starts_anywhere else next((end for end in ends if end > before), ends[-1])
            )
            block = list(itertools.chain.from_iterable(chunks))[before - start : limit - start]
            # shorter blocks while branches decode, whose steps wait for the lock
            most = self.block_tokens // 4 if self.batcher.busy else self.block_tokens
            if len(block) > most * 9 // 8:
                block = block[:most]
            if block:
                with memory_for(f"read {len(block):,} tokens"):
                    prefix.extend(block)
            if prefix.tokens in ends:
                prefix.mark_boundary()
            return range(before, prefix.tokens)

    def tokens_read(self, prefix: LocalPrefix) -> int:
        """See `Engine.tokens_read`."""
        return prefix.tokens

    def settle(self, prefix: LocalPrefix) -> int:
        """See `Engine.settle`: nothing is left to the branches here."""
        return 0

    prices = (1.0, 0.0)

    def foresee(self, prefix: LocalPrefix, branches: Sequence[Branch]) -> Usage:
        """Never called: nothing is billed."""
        raise NotImplementedError

    def holds(self, prefix: LocalPrefix, tokens: int) -> bool:
        """See `Engine.holds`."""
        return prefix.tokens >= tokens

    def decode(
        self, prefix: LocalPrefix, branches: Sequence[Branch], gate: Gate | None = None
    ) -> Iterator[list[Progress]]:
        """Decode branches together; see `wim_kernel.engines.base.Engine.decode`."""
        if not branches:
            return
        policies: dict[int, Policy] = {}
        rows = [self._row(index, branch, policies) for index, branch in enumerate(branches)]
        # prompts of one length next to each other, where states keep them from being padded
        rows.sort(key=lambda row: (0 if self.runner.state_layout is None else len(row.ids), -row.branch.at))
        steps = [policies[id(row.branch.generation)].max_new_tokens for row in rows if row.branch.generation]
        width, decided = (
            max(map(len, parts)) for parts in zip(*((row.ids, row.decided) for row in rows), strict=True)
        )
        room = width + decided + max(steps, default=0)
        vocabulary = self.model.config.get_text_config().vocab_size
        limits = PromptLimits(4 * self.block_tokens, vocabulary, self.logit_bytes, self.runner.spread)
        with memory_for(f"decode {len(rows)} branches together"):
            ends = [row.branch.at for row in rows]
            with self.batcher.session(lambda: prefix.branch(ends, room)) as session:
                yield from decode(rows, prefix.ids, gate, session, limits)

    @property
    def _starts_anywhere(self) -> bool:
        """Whether branches can start between chunk boundaries."""
        return self.cache_mode == "shared" and self.runner.state_layout is None

    def _row(self, index: int, branch: Branch, policies: dict[int, Policy]) -> Row:
        sampler: Callable[[Sequence[int]], Sampler] | None = None
        if branch.generation is not None:
            key = id(branch.generation)
            if key not in policies:
                policies[key] = Policy(self.model, self.tokenizer, branch.generation)
            sampler = policies[key].sampler
            if branch.json_schema is not None:
                grammars = self._grammars(policies[key].eos)
                sampler = partial(sampler, grammars=grammars, json_schema=branch.json_schema)
            elif branch.citable is not None:
                markers = self._markers(policies[key].eos)
                sampler = partial(sampler, markers=markers, citable=branch.citable)
        choices = self.codec.choices(branch.choices)
        runs = self.codec.suffix(branch.prompt, branch.cue)
        scored = self.codec.scored(runs, branch.scored)
        return Row(index, branch, runs, scored, choices, sampler, self.codec.stream())


def _checked_kept(kept_dtype: KeptDtype | None, cache_mode: str) -> KeptDtype | None:
    """The dtype of kept readings.

    Raises:
        OptionError: if there is no such dtype, or the model's own cache is used, whose form is the model's.
    """
    if kept_dtype not in (None, "int8"):
        raise OptionError(f"kept_dtype is 'int8' or None, not {kept_dtype!r}.")
    if kept_dtype is not None and cache_mode != "shared":
        raise OptionError(
            "kept_dtype needs a model whose branches share a prefix; this model's own cache is used."
        )
    return kept_dtype
