"""The next token of a branch, by transformers' own logits processors."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor
from transformers.generation.stopping_criteria import StopStringCriteria

from wim_kernel.common.errors import OptionError
from wim_kernel.common.plain_data import is_finite, shown
from wim_kernel.engines.local.decode.json_grammar import Grammars

_NOT_FOLLOWED = ("penalty_alpha", "dola_layers", "token_healing", "constraints", "force_words_ids")
_HOLD_BACK_THE_END = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)


class Policy:
    """A `GenerationConfig` made ready for a model, as ``model.generate`` would make it ready.

    Args:
        model: gives the defaults of whatever the config leaves open.
        tokenizer: for stop strings.
        config: what the caller asked for.

    Raises:
        ValueError: for search over several hypotheses, which branches do not do.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig
    ) -> None:
        generating: Any = model  # the generation mixin is not part of the model's declared type
        ready, _ = generating._prepare_generation_config(config)
        if (ready.num_beams or 1) > 1 or (ready.num_return_sequences or 1) > 1:
            raise ValueError(
                "Branches decode one hypothesis each: num_beams and num_return_sequences must be 1."
            )
        if ready.max_new_tokens is None:
            raise ValueError("A generation config needs max_new_tokens.")
        self.model = generating
        self.device: torch.device = next(model.get_input_embeddings().parameters()).device
        generating._prepare_special_tokens(ready, kwargs_has_attention_mask=True, device=self.device)
        self.config = ready
        self.max_new_tokens: int = ready.max_new_tokens
        if ready.max_time is not None and not is_finite(ready.max_time):
            raise OptionError(f"max_time of a GenerationConfig is seconds, not {shown(ready.max_time)}.")
        self.max_time: float | None = ready.max_time
        _warn_of_others(ready)
        eos = ready.eos_token_id
        self.eos = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
        self.stop = StopStringCriteria(tokenizer, ready.stop_strings) if ready.stop_strings else None

    def sampler(
        self, prompt: Sequence[int], grammars: Grammars | None = None, json_schema: str | None = None
    ) -> Sampler:
        """What chooses tokens behind ``prompt``, such that they fit the schema if there is one."""
        config, own = self.config, LogitsProcessorList()
        if grammars is not None and json_schema is not None:
            own.append(grammars.processor(json_schema, len(prompt), self.max_new_tokens))
            config = _without_bans(config)
        elif config.forced_eos_token_id is not None:
            config = copy.deepcopy(config)
            config.max_length = len(prompt) + self.max_new_tokens  # where it is forced
        looks_back = (config.encoder_repetition_penalty or 1.0) != 1.0 or config.encoder_no_repeat_ngram_size
        processors = self.model._get_logits_processor(
            config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([prompt if looks_back else prompt[:1]], device=self.device),
            logits_processor=own,
            device=str(self.device),
        )
        return Sampler(self, processors, prompt, stops=json_schema is None)


def _warn_of_others(config: GenerationConfig) -> None:
    """Say which settings change what ``generate`` writes and nothing here."""
    found = [name for name in _NOT_FOLLOWED if getattr(config, name, None)]
    if found:
        warnings.warn(
            f"Branches do not follow {', '.join(found)} of a GenerationConfig: leave it out.",
            stacklevel=2,
        )


def _without_bans(config: GenerationConfig) -> GenerationConfig:
    """The config without what could forbid the only token that a grammar allows."""
    free = copy.deepcopy(config)
    free.min_length, free.min_new_tokens, free.no_repeat_ngram_size = 0, None, 0
    free.bad_words_ids = free.suppress_tokens = free.begin_suppress_tokens = None
    free.forced_bos_token_id = free.forced_eos_token_id = free.sequence_bias = None
    return free


class Sampler:
    """Chooses one branch's tokens, one after another."""

    def __init__(
        self, policy: Policy, processors: LogitsProcessorList, prompt: Sequence[int], *, stops: bool = True
    ) -> None:
        self.policy = policy
        self.stop = policy.stop if stops else None
        self.processors = processors
        self.prompt_tokens = len(prompt)
        self.prompt = prompt
        self._ids: Tensor | None = None
        self._written = self.prompt_tokens
        self.token_ids: list[int] = []
        self.greedy = not policy.config.do_sample
        self._until = time.monotonic() + policy.max_time if stops and policy.max_time is not None else None
        self._held_back_only = self.greedy and all(
            isinstance(item, _HOLD_BACK_THE_END) for item in processors
        )

    def takes(self, likeliest: int) -> bool:
        """Whether the likeliest token is surely the choice, without asking the processors.

        It is in greedy decoding without processors, or with none but those that hold back the end, if it is no end.
        """
        return self._held_back_only and (not self.processors or likeliest not in self.policy.eos)

    @property
    def takes_likeliest(self) -> bool:
        """Whether it takes the likeliest token, but for an end that is held back."""
        return self._held_back_only

    @property
    def goes_on(self) -> bool:
        """Whether another token may come behind the next one."""
        return len(self.token_ids) + 1 < self.policy.max_new_tokens

    def choose(self, logits: Tensor) -> int:
        """The next token, given logits (vocabulary,)."""
        scores = logits[None].float()
        if self.processors:
            scores = self.processors(self._seen, scores)
        if self.greedy:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1))

    def push(self, token: int) -> bool:
        """Take a token in; True if the branch ends with it."""
        if token in self.policy.eos:
            return True
        self.token_ids.append(token)
        if len(self.token_ids) >= self.policy.max_new_tokens:
            return True
        if self._until is not None and time.monotonic() > self._until:
            return True
        if self.stop is None:
            return False
        return bool(self.stop(self._seen, None).all())

    @property
    def _seen(self) -> Any:
        """Everything before the next token, (1, tokens); put on the device only where somebody asks for it."""
        if self._ids is None:
            room = [0] * self.policy.max_new_tokens
            self._ids = torch.tensor([[*self.prompt, *room]], device=self.policy.device)
        for token in self.token_ids[self._written - self.prompt_tokens :]:
            self._ids[0, self._written] = token
            self._written += 1
        return self._ids[:, : self._written]
