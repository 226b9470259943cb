"""Samples a branch's tokens with transformers' own logits processors."""

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
from wim_kernel.engines.generation import Generation, Greedy
from wim_kernel.engines.local.decode.json_grammar import Grammars
from wim_kernel.engines.local.decode.marker_grammar import MarkerGrammars
from wim_kernel.engines.local.model.calling import input_device

_UNSUPPORTED = ("penalty_alpha", "dola_layers", "token_healing", "constraints", "force_words_ids")
_ONLY_DELAY_EOS = (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor)


class Policy:
    """A `GenerationConfig` prepared for a model, as ``model.generate`` prepares it.

    Args:
        model: supplies the defaults of settings that the config leaves open.
        tokenizer: encodes stop strings.
        config: the caller's settings.

    Raises:
        ValueError: if the config asks for beam search or several sequences, or has no ``max_new_tokens``.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Generation
    ) -> None:
        generating: Any = model  # the generation mixin is not part of the model's declared type
        if isinstance(config, Greedy):
            config = GenerationConfig.from_dict({"do_sample": False, "max_new_tokens": config.max_new_tokens})
        ready, _ = generating._prepare_generation_config(config)
        if (ready.num_beams or 1) > 1 or (ready.num_return_sequences or 1) > 1:
            raise ValueError(
                "Branches decode one hypothesis each: num_beams and num_return_sequences must be 1."
            )
        if ready.max_new_tokens is None:
            raise ValueError("A generation config needs max_new_tokens.")
        self.model = generating
        self.device: torch.device = input_device(model)
        generating._prepare_special_tokens(ready, kwargs_has_attention_mask=True, device=self.device)
        self.config = ready
        self.max_new_tokens: int = ready.max_new_tokens
        if ready.max_time is not None and not is_finite(ready.max_time):
            raise OptionError(f"max_time of a GenerationConfig is seconds, not {shown(ready.max_time)}.")
        self.max_time: float | None = ready.max_time
        _warn_of_unsupported(ready)
        eos = ready.eos_token_id
        self.eos = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
        self.stop = StopStringCriteria(tokenizer, ready.stop_strings) if ready.stop_strings else None

    def sampler(
        self,
        prompt: Sequence[int],
        grammars: Grammars | None = None,
        json_schema: str | None = None,
        markers: MarkerGrammars | None = None,
        citable: int | None = None,
    ) -> Sampler:
        """A sampler of tokens after ``prompt``.

        It is constrained to ``json_schema`` if one is given, or to markers of the first ``citable`` numbers.
        """
        config, own = self.config, LogitsProcessorList()
        if grammars is not None and json_schema is not None:
            own.append(grammars.processor(json_schema, len(prompt), self.max_new_tokens))
            config = _without_constraints(config)
        elif config.forced_eos_token_id is not None:
            config = copy.deepcopy(config)
            config.max_length = len(prompt) + self.max_new_tokens  # the position at which the EOS is forced
        if markers is not None and citable is not None and json_schema is None:
            own.append(markers.processor(citable, len(prompt)))
        needs_prompt = (
            config.encoder_repetition_penalty or 1.0
        ) != 1.0 or config.encoder_no_repeat_ngram_size
        processors = self.model._get_logits_processor(
            config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([prompt if needs_prompt else prompt[:1]], device=self.device),
            logits_processor=own,
            device=str(self.device),
        )
        return Sampler(self, processors, prompt, stops=json_schema is None)


def _warn_of_unsupported(config: GenerationConfig) -> None:
    """Warn of settings that ``generate`` follows and branches do not."""
    found = [name for name in _UNSUPPORTED if getattr(config, name, None)]
    if found:
        warnings.warn(
            f"Branches do not follow {', '.join(found)} of a GenerationConfig: leave it out.",
            stacklevel=2,
        )


def _without_constraints(config: GenerationConfig) -> GenerationConfig:
    """The config without settings that could forbid the only token that a grammar allows."""
    free = copy.deepcopy(config)
    free.min_length, free.min_new_tokens, free.no_repeat_ngram_size = 0, None, 0
    free.bad_words_ids = free.suppress_tokens = free.begin_suppress_tokens = None
    free.forced_bos_token_id = free.forced_eos_token_id = free.sequence_bias = None
    return free


class Sampler:
    """Chooses the tokens of one branch, one at a time.

    Args:
        policy: the prepared generation config.
        processors: logits processors of this branch.
        prompt: token ids before the first token to choose.
        stops: whether stop strings and ``max_time`` apply.

    Attributes:
        token_ids: the tokens so far, without EOS.
        greedy: whether the config asks for greedy decoding.
    """

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
        self._deadline = time.monotonic() + policy.max_time if stops and policy.max_time is not None else None
        self._follows_argmax = self.greedy and all(isinstance(item, _ONLY_DELAY_EOS) for item in processors)

    def accepts_argmax(self, token: int) -> bool:
        """Whether the argmax of the logits is the choice, whatever the logits processors do.

        True for greedy decoding if no processor can change the argmax: there are none, or only minimum-length ones and
        the token is not EOS.
        """
        return self._follows_argmax and (not self.processors or token not in self.policy.eos)

    @property
    def follows_argmax(self) -> bool:
        """Whether the choice is always the argmax of the logits, except for an EOS before the minimum length."""
        return self._follows_argmax

    @property
    def has_room_after_next(self) -> bool:
        """Whether another token may follow the next one."""
        return len(self.token_ids) + 1 < self.policy.max_new_tokens

    def choose(self, logits: Tensor) -> int:
        """Choose the next token, given logits (vocabulary,)."""
        scores = logits[None].float()
        if self.processors:
            scores = self.processors(self._seen, scores)
        if self.greedy:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1))

    def push(self, token: int) -> bool:
        """Append a token; returns True if the branch ends with it."""
        if token in self.policy.eos:
            return True
        self.token_ids.append(token)
        if len(self.token_ids) >= self.policy.max_new_tokens:
            return True
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        if self.stop is None:
            return False
        return bool(self.stop(self._seen, None).all())

    @property
    def _seen(self) -> Any:
        """Prompt and generated tokens, (1, tokens), on the device; copied there when first needed."""
        if self._ids is None:
            room = [0] * self.policy.max_new_tokens
            self._ids = torch.tensor([[*self.prompt, *room]], device=self.policy.device)
        for token in self.token_ids[self._written - self.prompt_tokens :]:
            self._ids[0, self._written] = token
            self._written += 1
        return self._ids[:, : self._written]
